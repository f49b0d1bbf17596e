"""Train one recipe at several sizes, to compare it with another recipe of this file.

    uv run python -m experiments.sweep --sweep=configs/sweeps/recipes.py:muon
    uv run python -m experiments.compare --decide --time_budget=40m --out=runs/verdicts/muon \\
        configs/sweeps/recipes.py:base configs/sweeps/recipes.py:muon

The argument is a recipe and, after a comma, the training tokens. Pairs that answer a question:

    base, muon          Muon against AdamW
    base, tied          tied against untied embeddings
    no_qk_norm, base    QK-norm on against off
    deep, wide          wide against deep at equal parameters
    base, experts       experts against dense at equal FLOPs
    bytes, bpe          BPE against bytes in bits per byte

Each recipe has three learning rates and two seeds per size, so both recipes of a pair are tuned
equally. `compare` selects the learning rate of a seed by the loss of the other seed. The recipes
base and bytes have equal settings, but each has its own runs.

Hardware and time: 30 runs per recipe (24 of deep and wide), six to twelve minutes on two idle CPU
cores, so that a pair and its --decide end within an hour.
"""

from configs import base, experts
from lm.config import model_sizes, schema

SIZES = ("10K", "25K", "60K", "100K", "250K")
FACTORS = (1, 2, 4)  # of the learning rate of configs/base.py
SEEDS = (0, 1)
# Size -> (width, depth), with heads of 8 dimensions. The MLP gets the remaining parameters.
DEEP = {"25K": (16, 7), "60K": (24, 7), "100K": (32, 9), "250K": (48, 9)}
WIDE = {"25K": (32, 2), "60K": (48, 2), "100K": (64, 2), "250K": (96, 2)}
CHANGES = {  # recipe -> changed fields of the model
    "base": {},
    "bytes": {},
    "muon": {},
    "bpe": {},
    "experts": {},
    "tied": {"tie_embeddings": True},
    "no_qk_norm": {"qk_norm": False},
    "deep": {},
    "wide": {},
}


def get_sweep(argument: str = "base"):
    """Yield the runs of "RECIPE" or "RECIPE,TOKENS". Raises ValueError for another recipe."""
    recipe, _, tokens = argument.partition(",")
    if recipe not in CHANGES:
        raise ValueError(f"recipe {recipe!r} must be one of {', '.join(CHANGES)}")
    sweep = "recipes" if recipe == "base" else f"recipes-{recipe}"
    for size in {"deep": DEEP, "wide": WIDE}.get(recipe, SIZES):
        for factor in FACTORS:
            for seed in SEEDS:
                run = make_run(recipe, size)
                run.name, run.seed = f"{sweep}/{size}-x{factor}-seed{seed}", seed
                run.optim.lr *= factor
                run.steps = model_sizes.steps_for_budget(run, tokens=int(tokens or 600_000))
                run.checkpoint_interval = run.steps
                yield run


def make_run(recipe: str, size: str) -> schema.Run:
    """Return the run of a recipe and a size with the learning rate of configs/base.py."""
    run = experts.get_config(size) if recipe == "experts" else base.get_config(size)
    for name, value in CHANGES[recipe].items():
        setattr(run.model, name, value)
    if recipe in ("deep", "wide"):
        run.model = reshape_model(size, *(DEEP if recipe == "deep" else WIDE)[size])
        run.optim.lr = 0.5 / run.model.d_model
    if recipe == "muon":
        run.optim.name = "muon"
    if recipe == "bpe":
        run.data.tokenizer = "bpe:512"
    run.eval.n_sequences, run.eval.n_completions = 1024, 0
    return run


def reshape_model(size: str, d_model: int, n_layers: int) -> schema.Model:
    """Return a model of another width and depth with the non-embedding parameters of a size."""
    shape = {"d_model": d_model, "n_layers": n_layers, "d_head": 8}
    shape |= {"n_heads": d_model // 8, "n_kv_heads": d_model // 8}
    counts = [
        model_sizes.count_parameters(model)["non_embedding"]
        for model in (
            model_sizes.ladder_model(size, vocab_size=256),
            model_sizes.ladder_model(size, vocab_size=256, d_ff=0, **shape),
        )
    ]
    d_ff = round((counts[0] - counts[1]) / (3 * d_model * n_layers))
    return model_sizes.ladder_model(size, d_ff=d_ff, **shape)
