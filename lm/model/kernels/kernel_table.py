"""Which kernel serves which run: one table with requirements, reasons and evidence.

    kernels = kernel_table.select_kernels(run, device_mesh)
    kernels.attention.name, kernels.experts.name     # "splash", "xla"
    kernel_table.describe_kernels(run, device_mesh)  # ["attention: splash, because ..."]

The first row of KERNELS whose platform and requirements match serves the run. The fields
model.attention and model.expert_kernel select rows of one name. Training and held-out evaluation
use the same kernel. Generation and scoring with a cache use plain attention and XLA's experts.

Evidence, from weak to strong: "lowered" (forward and backward traced and lowered for the platform),
"compiled" (by the compiler of the platform, without a device), "interpreter" (results compared with
the plain kernel in an interpreter on CPU), "hardware" (results compared on the device).

Not used:

tokamax splash and ring attention on TPU   The kernel of JAX needs no extra. With split rows, each
    device gathers the keys of one layer, 4 x n_kv_heads x d_head bytes per token in bfloat16, and
    the queries are interleaved, so all devices have equal work. A ring saves this memory, and
    sends the same number of bytes.
tokamax.linear_softmax_cross_entropy_loss  It returns one sum. Weights of targets, the z-loss,
    logit_softcap and evaluation need the loss of each token. model.loss_chunks bounds the memory.
tokamax.gated_linear_unit                  It fuses the forward pass only. The backward pass needs
    both products again, 4/18 more FLOPs of the MLP, unless remat recomputes them in any case.
tokamax.ragged_dot on TPU                  XLA has a native instruction for jax.lax.ragged_dot.
fp8 and int8 products (qwix)               Every product would have another rounding, so that laws
    fitted across the switch are invalid. No hardware was available for a comparison of speed.
"""

import dataclasses
import importlib.util
from collections.abc import Callable

import jax

from lm.config import schema
from lm.model.kernels import remat_policies
from lm.parallel import mesh

EXTRA = "uv sync --extra kernels"
HOPPER = (9, 0)  # compute capability


@dataclasses.dataclass(frozen=True)
class Situation:
    """Properties of a run and its devices on which the choice of a kernel depends.

    is_attached: the devices are present, not only described. compute_capability: that of an NVIDIA
    GPU. has_tokamax: the extra "kernels" is installed.
    """

    run: schema.Run
    platform: str
    is_attached: bool
    compute_capability: tuple[int, int]
    has_tokamax: bool

    @property
    def has_segments(self) -> bool:
        """Return True if training rows consist of documents that are separated by a mask."""
        data = self.run.data
        return not data.attend_across_documents or data.packing == "documents"


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A row of the table.

    requirements: keys of REQUIREMENTS that a run must meet. reason: why the row is preferred to
    the rows below. evidence: see the docstring of this file. has_dense_mask: a mask [B, 1, T, S] is
    in memory.
    """

    operation: str
    name: str
    platforms: tuple[str, ...]
    requirements: tuple[str, ...]
    reason: str
    evidence: str
    has_dense_mask: bool = False


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of a run, and the preferred kernels that do not serve it.

    unmet: {operation: why the preferred kernels do not serve the run}.
    """

    attention: Kernel
    experts: Kernel
    unmet: dict[str, str]


ANY = ("cpu", "gpu", "tpu")
DISPATCHES = ("capacity dispatch", "dropless dispatch")  # requirements
KERNELS = (
    Kernel(
        *("attention", "splash", ("tpu",), ("rows of 128", "full attention")),
        reason="it stores no scores and skips masked blocks",
        evidence="interpreter, compiled for TPU v5p; not run on hardware",
    ),
    Kernel(
        *("attention", "cudnn", ("gpu",)),
        requirements=(
            *("attached", "bfloat16", "cuDNN head size", "no documents", "complete rows"),
            "full attention",
        ),
        reason="it stores no scores and skips the masked half of them",
        evidence="lowered; not run on hardware",
    ),
    Kernel(
        *("attention", "tokamax", ("gpu",)),
        requirements=(
            *("attached", "bfloat16", "head size", "rows of 128", "Hopper", "tokamax"),
            "full attention",
        ),
        reason="it skips keys outside of a range per query, so documents and split rows need no"
        " mask in memory",
        evidence="lowered, its reference compared on CPU; not run on hardware",
    ),
    Kernel(
        *("attention", "cudnn", ("gpu",)),
        requirements=("attached", "bfloat16", "cuDNN head size", "full attention"),
        reason="it stores no scores, but documents and split rows need a mask of seq_len^2 numbers"
        " per row in memory",
        evidence="lowered; not run on hardware",
        has_dense_mask=True,
    ),
    Kernel(
        *("attention", "plain", ANY, ()),
        reason="it runs on every device and mesh",
        evidence="hardware (CPU)",
    ),
    Kernel(
        *("experts", "batched", ANY, ("capacity dispatch",)),
        reason="all experts have equally many slots, so one batched product serves them",
        evidence="hardware (CPU)",
    ),
    Kernel(
        *("experts", "xla", ("cpu", "tpu"), ("dropless dispatch",)),
        reason="jax.lax.ragged_dot is native on TPU; on CPU it computes all experts, and has the"
        " losses of stored runs",
        evidence="hardware (CPU), compiled for TPU v5p; not run on TPU",
    ),
    Kernel(
        *("experts", "tokamax", ("gpu",)),
        requirements=("dropless dispatch", "attached", "bfloat16", "Ampere", "tokamax"),
        reason="it multiplies each token with its own experts only",
        evidence="lowered, its reference compared on CPU; not run on hardware",
    ),
    Kernel(
        *("experts", "tiles", ANY, ("dropless dispatch",)),
        reason="a loop over tiles of rows of one expert computes no other expert, but fills a GPU"
        " less than a grouped product",
        evidence="hardware (CPU); not run on GPU",
    ),
)


def _row_length(situation: Situation) -> str:
    run = situation.run
    if run.data.seq_len % (128 * run.mesh.sequence) == 0:
        return ""
    split = f" x mesh.sequence={run.mesh.sequence}" if run.mesh.sequence > 1 else ""
    return f"supports row lengths that are multiples of 128{split}, not {_value(run, 'seq_len')}"


def _value(run: schema.Run, name: str) -> str:
    """Return a field and its value, as in an error message."""
    group = "data" if hasattr(run.data, name) else "model"
    return f"{group}.{name}={getattr(getattr(run, group), name)!r}"


def _head_size(situation: Situation, largest: int) -> str:
    model = situation.run.model
    if model.d_head % 8 == 0 and model.d_head <= largest:
        return ""
    return (
        f"supports head sizes that are multiples of 8 up to {largest} on this device, not"
        f" {_value(situation.run, 'd_head')}"
    )


def _cudnn_head_size(situation: Situation) -> str:
    return _head_size(situation, 256 if situation.compute_capability >= HOPPER else 128)


def _documents(situation: Situation) -> str:
    message = "has no document mask, which data.attend_across_documents=False or"
    message += " data.packing='documents' requires"
    return message if situation.has_segments else ""


def _split_rows(situation: Situation) -> str:
    n = situation.run.mesh.sequence
    return f"cannot split rows: mesh.sequence must be 1, not mesh.sequence={n}" if n > 1 else ""


def _full_attention(situation: Situation) -> str:
    for name, part in (("sliding_window", "window"), ("attention_softcap", "cap of scores")):
        if getattr(situation.run.model, name):
            return f"has no {part}, which {_value(situation.run, name)} requires"
    return ""


def _capability(situation: Situation, least: tuple[int, int]) -> str:
    major, minor = situation.compute_capability
    if (major, minor) >= least:
        return ""
    return f"needs compute capability {least[0]}.{least[1]}, and this device has {major}.{minor}"


def _dispatch(situation: Situation, dispatch: str) -> str:
    model = situation.run.model
    return "" if model.dispatch == dispatch else f"needs model.dispatch={dispatch!r}"


def _dtype(situation: Situation) -> str:
    dtype = situation.run.model.dtype
    message = f"computes in bfloat16 only, not in model.dtype={dtype!r}"
    return "" if dtype == "bfloat16" else message


# Each function returns why a situation does not meet a requirement, "" if it does.
REQUIREMENTS: dict[str, Callable[[Situation], str]] = {
    "rows of 128": _row_length,
    "bfloat16": _dtype,
    "head size": lambda situation: _head_size(situation, 256),
    "cuDNN head size": _cudnn_head_size,
    "no documents": _documents,
    "complete rows": _split_rows,
    "full attention": _full_attention,
    "Hopper": lambda situation: _capability(situation, HOPPER),
    "Ampere": lambda situation: _capability(situation, (8, 0)),
    "attached": lambda situation: (
        # The libraries query the device, which a description does not support.
        "" if situation.is_attached else "cannot be compiled for an absent GPU"
    ),
    "tokamax": lambda situation: (
        "" if situation.has_tokamax else f"needs the extra 'kernels' ({EXTRA})"
    ),
    "capacity dispatch": lambda situation: _dispatch(situation, "capacity"),
    "dropless dispatch": lambda situation: _dispatch(situation, "dropless"),
}


def select_kernels(run: schema.Run, device_mesh: jax.sharding.Mesh) -> Kernels:
    """Return the kernels of a run on these devices.

    Raises ValueError if model.attention or model.expert_kernel names a kernel that does not support
    the run.
    """
    platform = mesh.device_platform(device_mesh)
    capability = getattr(device_mesh.devices.flat[0], "compute_capability", None)
    return _select(run, platform, jax.default_backend() == platform, capability)


def resolve_kernels(run: schema.Run, device_mesh: jax.sharding.Mesh) -> schema.Run:
    """Return the run with the names of its kernels on these devices instead of "auto".

    Raises ValueError like `select_kernels`, and if the devices do not support model.remat.
    """
    remat_policies.validate_remat(run, mesh.device_platform(device_mesh))
    kernels = select_kernels(run, device_mesh)
    names = {"attention": kernels.attention.name, "expert_kernel": kernels.experts.name}
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **names))


def select_kernels_for(run: schema.Run, platform: str, capability: str = "") -> Kernels:
    """Return the kernels of a run on a machine that is described: cpu, gpu or tpu.

    capability: compute capability of the GPUs of another machine, such as "9.0". The extra
    "kernels" is assumed to be installed there, and the reason states this. With "" a GPU is assumed
    to be of the Hopper generation, with the packages of this machine. Raises ValueError like
    `select_kernels`.
    """
    kernels = _select(run, platform, True, capability or None, has_extra=bool(capability))
    if not capability:
        return kernels
    rows = {"attention": kernels.attention, "experts": kernels.experts}
    note = f", if the extra 'kernels' is installed there ({EXTRA})"
    return dataclasses.replace(
        kernels,
        **{
            operation: dataclasses.replace(kernel, reason=kernel.reason + note)
            for operation, kernel in rows.items()
            if "tokamax" in kernel.requirements
        },
    )


def _select(
    run: schema.Run,
    platform: str,
    is_attached: bool,
    capability: str | None,
    has_extra: bool = False,
) -> Kernels:
    """Return the kernels of a run.

    capability: that of the GPU, such as "9.0"; None: Hopper. has_extra: True omits the check for
    tokamax on this machine.
    """
    major, minor = (int(n) for n in (capability or "9.0").split("."))
    has_tokamax = has_extra or importlib.util.find_spec("tokamax") is not None
    situation = Situation(run, platform, is_attached, (major, minor), has_tokamax)
    attention, unmet_attention = _select_row(situation, "attention", "model.attention")
    experts, unmet_experts = _select_row(situation, "experts", "model.expert_kernel")
    return Kernels(attention, experts, {"attention": unmet_attention, "experts": unmet_experts})


def _select_row(situation: Situation, operation: str, field: str) -> tuple[Kernel, str]:
    """Return the row of an operation, and why the other kernels above it do not serve the run."""
    choice = schema.flatten(situation.run)[field]
    rows = [kernel for kernel in KERNELS if kernel.operation == operation]
    named = [kernel for kernel in rows if choice in ("auto", kernel.name)]
    reasons = {}
    for kernel in named:
        reason = unmet_requirement(kernel, situation)
        if not reason:
            reasons.pop(kernel.name, None)
            return kernel, "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        # A kernel of the other dispatch is no alternative.
        is_alternative = not any(
            REQUIREMENTS[name](situation) for name in kernel.requirements if name in DISPATCHES
        )
        if situation.platform in kernel.platforms and is_alternative:
            reasons.setdefault(kernel.name, reason)
    reason = unmet_requirement(named[-1], situation)
    raise ValueError(f"{field}={choice!r} {reason}: change that or set {field}='auto'")


def unmet_requirement(kernel: Kernel, situation: Situation) -> str:
    """Return why a kernel does not support a run; "" if it does."""
    if situation.platform not in kernel.platforms:
        return f"runs on {' and '.join(kernel.platforms)}, not on {situation.platform}"
    reasons = (REQUIREMENTS[name](situation) for name in kernel.requirements)
    return next((reason for reason in reasons if reason), "")


def describe_kernels(kernels: Kernels, run: schema.Run) -> list[str]:
    """Return one line per operation with its kernel and the reason, to print at the start."""
    operations = {"attention": kernels.attention}
    operations |= {"experts": kernels.experts} if run.model.n_experts else {}
    lines = []
    for operation, kernel in operations.items():
        line = f"{operation}: {kernel.name}, because {kernel.reason} [{kernel.evidence}]"
        unmet = kernels.unmet[operation]
        lines.append(f"{line}; not selected: {unmet}" if unmet else line)
    return lines
