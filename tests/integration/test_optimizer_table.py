"""Table of the optimizers of a plan."""

from experiments.common import optimizer_table
from lm.config import model_sizes, schema


def test_plan_states_lengths_in_steps_and_large_rates(capsys):
    """The default learning rate is above all published rules for a model of 1B parameters."""
    run = schema.Run(name="large", steps=10_000, model=model_sizes.ladder_model("1B"))
    run.optim = schema.Optimizer(schedule="wsd", warmup_tokens=2**20, decay_steps=100)
    run.optim.b2_half_life_tokens, run.optim.independent_weight_decay = 2**20, True
    row = {"name": run.name} | optimizer_table.describe_optimizer(run)
    assert (row["warmup_steps"], row["decay_steps"], row["b2"]) == (512, 100, 2 ** (-1 / 512))
    assert row["weight_decay_per_step"] == run.optim.weight_decay
    optimizer_table.print_optimizers([row])
    text = capsys.readouterr().out
    assert "512 steps, 1.05e+06 tokens" in text and "100 steps, 2.05e+05 tokens" in text
    assert "warning: large: optim.lr=0.003 is above the published rules for this size" in text
