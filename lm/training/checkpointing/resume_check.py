"""Comparison of the next loss of a restored state with the loss before the restart.

    rules = resume_check.ResumeRules.from_run(run, device_mesh, environment)
    warning = resume_check.verify_loss(restored, loss, rules)

Equal bits are required if the step must reproduce them: in deterministic mode with the same
versions, and on a CPU with the same facts. XLA does not promise equal bits elsewhere. On GPU it
measures kernels when it compiles, and may choose others in another process
(openxla.org/xla/determinism). Another version of JAX or of this package may round differently.

The tolerance of bfloat16 is larger for a run that another version of this package saved. Version
0.2 rounded weight gradients to bfloat16, and later versions compute them in float32.
"""

import dataclasses
import json
import math
import warnings

import jax

from lm.config import schema
from lm.parallel import distributed, mesh
from lm.runs import json_files, records
from lm.training.checkpointing import checkpoint_manifest

# Relative tolerance of a loss by model.dtype. Wrong text or weights change a loss by more, and
# their hashes and checksums are compared too.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-3}
OTHER_VERSION_TOLERANCES = TOLERANCES | {"bfloat16": 1e-2}
MAX_SHOWN_CHANGES = 3  # facts of the environment in a message


@dataclasses.dataclass(frozen=True)
class ResumeRules:
    """Requirements on the first loss after a restart.

    environment        facts of this session, see metric_log.describe_environment
    platform           cpu, gpu or tpu
    dtype              model.dtype
    tolerance          resume_tolerance; 0 is the default for platform and dtype
    has_fixed_order    True with mesh.deterministic_shards
    has_fixed_kernels  True with mesh.deterministic_kernels
    """

    environment: str
    platform: str
    dtype: str
    tolerance: float
    has_fixed_order: bool
    has_fixed_kernels: bool

    @classmethod
    def from_run(
        cls, run: schema.Run, device_mesh: jax.sharding.Mesh, environment: str
    ) -> "ResumeRules":
        """Return the rules of a run on its devices."""
        platform = mesh.device_platform(device_mesh)
        modes = bool(run.mesh.deterministic_shards), run.mesh.deterministic_kernels
        return cls(environment, platform, run.model.dtype, run.resume_tolerance, *modes)

    def largest_difference(self, old_environment: str) -> float:
        """Return the largest allowed relative difference. old_environment: facts before."""
        if self.tolerance:
            return self.tolerance
        old, new = _parse_facts(old_environment), _parse_facts(self.environment)
        has_same_code = bool(old) and old.get("code.version") == new.get("code.version")
        if not has_same_code:
            return OTHER_VERSION_TOLERANCES[self.dtype]
        is_reproducible = old == new and (self.platform == "cpu" or self.has_fixed_kernels)
        is_reproducible |= self.has_fixed_order and _versions(old) == _versions(new)
        return 0.0 if is_reproducible else TOLERANCES[self.dtype]


def verify_loss(
    restored: checkpoint_manifest.RestoredState, loss: float, rules: ResumeRules
) -> str:
    """Warn if the next loss differs within the tolerance. Return the warning, "" if it is equal.

    Raises CheckpointError with the option that allows the difference if it exceeds the tolerance.
    """
    expected = restored.expected_next_loss
    if expected is None or loss == expected or (math.isnan(loss) and math.isnan(expected)):
        return ""
    difference = abs(loss - expected) / abs(expected) if expected else math.inf
    limit = rules.largest_difference(restored.next_environment)
    text = (
        f"step {restored.step + 1} has loss {loss!r} after the restart and {expected!r} before it,"
        f" a relative difference of {difference:.2g}"
        f"{describe_changes(restored.next_environment, rules.environment)}"
    )
    if difference <= limit:
        if distributed.is_primary():
            warnings.warn(f"{restored.folder}: {text}: at most {limit:g} is allowed", stacklevel=2)
        return f"{text}: at most {limit:g} is allowed"
    problem = f"above the allowed {limit:g}" if limit else "and equal bits are required"
    remedy = f"set resume_tolerance={_round_up(difference):g} to continue, or choose a new name"
    if not math.isfinite(difference):
        remedy = "restore code and text, or choose a new name"
    raise checkpoint_manifest.CheckpointError(f"{restored.folder}: {text}, {problem}: {remedy}")


def list_events(
    run: schema.Run, restored: checkpoint_manifest.RestoredState
) -> list[tuple[str, str]]:
    """Return events of a restart: damaged checkpoints and changes of the objective.

    Each event has a name and a message. Call before records.start_run replaces the stored config.
    """
    events = [("damaged", message) for message in restored.damage]
    if not restored.step or not distributed.is_primary():
        return events
    folder = records.run_dir(run)
    changes = describe_changed_objective(
        run, json_files.read_optional_record(folder / "config.json")
    )
    if changes:
        warnings.warn(f"{folder}: {changes}", stacklevel=2)
    return events + [("changed objective", changes)] * bool(changes)


def describe_changed_objective(run: schema.Run, stored_config: dict) -> str:
    """Return the parts of training that differ from version 0.2, "" if none does.

    stored_config: content of config.json. Only later versions store model.gradient_dtype.
    """
    model, optim = run.model, run.optim
    if not stored_config or "gradient_dtype" in stored_config.get("model", {}):
        return ""
    changes = []
    if model.z_loss:
        changes.append(f"the z-loss (model.z_loss={model.z_loss:g}) counts no padding")
    if model.n_experts:
        changes.append(f"router statistics (model.n_experts={model.n_experts}) count no padding")
    if model.parametrization != "standard":
        parts = {"Muon": optim.name == "muon", "the router": model.n_experts}
        parts |= {"LoRA": model.lora_rank}
        names = " and ".join(name for name, is_used in parts.items() if is_used)
        scaling = f"model.parametrization={model.parametrization!r} scales {names} differently"
        changes += [scaling] if names else []
    if not changes:
        return ""
    return f"version 0.2 saved this run, and training has changed since: {'; '.join(changes)}"


def describe_changes(old_environment: str, environment: str) -> str:
    """Return the facts that differ between two environments as a text, "" if none differs."""
    old, new = _parse_facts(old_environment), _parse_facts(environment)
    if not old or not new:
        return ""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    shown = [f"{name}={old.get(name)!r}, now {new.get(name)!r}" for name in names]
    more = len(shown) - MAX_SHOWN_CHANGES
    shown = shown[:MAX_SHOWN_CHANGES] + ([f"{more} more"] if more > 0 else [])
    return f" (changed: {'; '.join(shown)})" if shown else ""


def _parse_facts(environment: str) -> dict:
    """Return the facts of an environment; {} for the list of values of version 0.2."""
    try:
        facts = json.loads(environment or "{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _versions(facts: dict) -> dict:
    """Return the versions of packages, of the compiler and of the driver in an environment."""
    return {name: value for name, value in facts.items() if name.startswith("versions.")}


def _round_up(value: float) -> float:
    """Return a bound with one significant digit that is above the value."""
    if not math.isfinite(value):
        return value
    unit = 10.0 ** math.floor(math.log10(value))
    return (math.floor(value / unit) + 1) * unit
