"""Trained models, loaded from their run directories to generate and to score text.

Example:

    model = load_model("runs/quickstart/600K")
    model.generate("def ", temperature=0.8).text
    model.score("2+2=", "4").nats            # float64 [n], one number per token of the answer
    model.params["blocks/mlp/up"]            # an array; the keys are paths
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

import jax

from lm.config import schema
from lm.data import evaluation_text, tokenizers
from lm.data.sources import path_permissions
from lm.data.tokenization import token_healing
from lm.evaluation import generation, scoring
from lm.model import params
from lm.parallel import distributed, mesh
from lm.runs import records
from lm.training import checkpoints, step


class LoadedModel:
    """A trained model: the weights of a run at one checkpoint, and its tokenizer.

    run          config of the run
    step         number of training steps before the checkpoint
    weights      nested dict of arrays
    tokenizer    tokenizer of the run
    device_mesh  mesh of the devices that have the weights
    """

    def __init__(
        self,
        run: schema.Run,
        step_number: int,
        weights: dict,
        tokenizer: tokenizers.Tokenizer,
        device_mesh: jax.sharding.Mesh,
    ):
        self.run, self.step, self.weights = run, step_number, weights
        self.tokenizer, self.device_mesh = tokenizer, device_mesh

    def __repr__(self) -> str:
        n_params = sum(array.size for array in self.params.values())
        return f"LoadedModel({self.run.name!r}, step={self.step}, parameters={n_params:,})"

    @functools.cached_property
    def params(self) -> Mapping[str, jax.Array]:
        """Return the weights by path, such as "blocks/mlp/up"."""
        return params.flatten_by_path(self.weights)

    @overload
    def generate(self, prompt: str, **sampling) -> generation.Generated: ...
    @overload
    def generate(self, prompt: Sequence[str], **sampling) -> list[generation.Generated]: ...
    def generate(self, prompt, **sampling):
        """Continue a prompt, or each prompt of a list. Return a result or a list of results.

        sampling: fields of generation.SamplingParams, such as max_tokens, temperature, top_p, stop
        and seed. Raises ValueError for a value that is not allowed.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        results = generation.generate(
            self.run,
            self.device_mesh,
            self.weights,
            [token_healing.encode_prompt(self.tokenizer, text) for text in prompts],
            self.tokenizer,
            generation.SamplingParams(**sampling),
        )
        return results[0] if isinstance(prompt, str) else results

    @overload
    def score(self, prompt: str, answer: str) -> scoring.ScoredAnswer: ...
    @overload
    def score(self, prompt: str, answer: Sequence[str]) -> list[scoring.ScoredAnswer]: ...
    def score(self, prompt, answer):
        """Compute the log-likelihood of an answer after a prompt, or of each answer of a list.

        Return a result or a list of results: see token_healing for the tokens and the formula.
        """
        answers = [answer] if isinstance(answer, str) else list(answer)
        pairs = token_healing.encode_pairs(self.tokenizer, [(prompt, text) for text in answers])
        results = scoring.score_pairs(self.run, self.device_mesh, self.weights, pairs)
        return results[0] if isinstance(answer, str) else results


def load_model(
    path: str | Path, step_number: int | None = None, allow_paths: Sequence[str] = ()
) -> LoadedModel:
    """Load the model of a run directory on the devices of this machine.

    step_number: step of a checkpoint; None is the final step of a finished run, else the newest
    checkpoint. The weights are replicated on every device if this machine has only CPUs, or if
    run.mesh does not fit its devices. allow_paths: folders outside the run to which its symbolic
    links may lead, see path_permissions.py. Raises ValueError if the path is not a run directory or
    has no such checkpoint.
    """
    path_permissions.check_links(path, allow_paths)
    run = records.read_config(path)
    mesh.initialize_devices()
    tokenizer = evaluation_text.load_run_tokenizer(run)
    run = fit_to_devices(run)
    functions, state = restore_model(run, step_number)
    return LoadedModel(run, int(state["step"]), state["params"], tokenizer, functions.mesh)


def fit_to_devices(run: schema.Run, is_sharded_on_cpu: bool = False) -> schema.Run:
    """Return the run with a mesh that this machine has. Weights do not depend on the mesh.

    The mesh of the run is used if it fits the devices. Otherwise, and on CPU unless
    is_sharded_on_cpu is True, each device has all weights. data.batch_size is increased to a
    multiple of the devices, because rows are scored in batches of this size.
    """
    try:
        mesh.make_run_mesh(run)
        if is_sharded_on_cpu or jax.default_backend() != "cpu":
            return run
    except ValueError:
        pass
    n_devices = len(distributed.list_devices())
    batch_size = -(-run.data.batch_size // n_devices) * n_devices
    data = dataclasses.replace(run.data, batch_size=batch_size, batch_size_warmup="")
    # Without the rule, the devices of a CPU share large models: memory_estimate.resolve_layout.
    return dataclasses.replace(run, mesh=schema.Mesh(rules={"embed": []}), data=data)


def restore_model(
    run: schema.Run, step_number: int | None = None, parts: tuple[str, ...] = ("step", "params")
) -> tuple[step.TrainFunctions, dict]:
    """Return the functions of a run on all devices, and parts of its state at a checkpoint.

    step_number: step of a checkpoint; None is the final step of a finished run, else the newest
    checkpoint. parts: keys of the state, of "step", "params" and "opt". Raises CheckpointError if
    the checkpoint is missing or corrupt.
    """
    functions = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    abstract = {part: functions.abstract[part] for part in parts}
    restored = checkpoints.read_checkpoint(run, _checkpoint_step(run, step_number), abstract)
    return functions, restored.state


@contextlib.contextmanager
def open_weights(
    run: schema.Run, step_number: int | None = None
) -> Iterator[tuple[Callable[[str], jax.Array], int]]:
    """Yield a function that reads one weight by its path, and the step of the checkpoint.

    The function reads a weight on each call, so that the whole model need not fit in memory.
    step_number: see `restore_model`.
    """
    functions = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    abstract = {"params": functions.abstract["params"]}
    with checkpoints.open_readonly(run, _checkpoint_step(run, step_number)) as (store, stored_step):
        read = store.reader(stored_step, abstract)
        yield lambda path: read(f"params/{path}"), stored_step


def _checkpoint_step(run: schema.Run, step_number: int | None) -> int | None:
    """Return step_number, or the final step of a finished run; None is the newest checkpoint."""
    if step_number is None:
        return records.read_facts(records.run_dir(run)).get("ends_at")
    return step_number
