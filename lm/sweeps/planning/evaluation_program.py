"""Memory of the evaluation of a run, compiled for hardware that is not present.

    evaluation_program.compile_evaluation(run, hardware.parse_target("tpu:v5e:4x4"))    # bytes

An evaluation takes place between two train steps, so that parameters and optimizer state stay on
the devices.
"""

import jax

from lm.config import schema
from lm.evaluation import generation, tasks
from lm.parallel import mesh
from lm.sweeps.planning import aot_compile, hardware
from lm.training import step


def compile_evaluation(run: schema.Run, target: hardware.Target) -> float:
    """Compile the program that scores held-out rows. Return the bytes of its temporaries.

    The bytes are those of one device without the parameters.
    """
    device_mesh = mesh.make_mesh(run.mesh, aot_compile.target_devices(target))
    program = step.build_train_functions(run, device_mesh)
    params = program.abstract["params"]
    n_params_bytes = aot_compile.bytes_per_device(params)
    with jax.set_mesh(device_mesh):
        lowered = program.score.lower(params, program.evaluation_batch)
        try:
            memory = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            limit = target.spec.memory_bytes
            needed = aot_compile.parse_needed_bytes(str(error), n_params_bytes, limit)
            if not needed:
                raise
            return needed - n_params_bytes
    arguments = memory.argument_size_in_bytes - n_params_bytes
    return arguments + memory.temp_size_in_bytes + memory.output_size_in_bytes


def count_prompts(run: schema.Run) -> int:
    """Return the largest number of prompts that an evaluation of the run answers together.

    The number is 0 if no task generates answers. Tasks in files that this machine does not have
    are assumed to generate.
    """
    if not run.eval.tasks:
        return 0
    try:
        loaded = tasks.load_tasks(run.eval.tasks)
    except (ValueError, OSError):
        return generation.MAX_PROMPTS
    n_examples = [len(task.examples) for task in loaded if task.generate]
    return min(generation.MAX_PROMPTS, max(n_examples, default=0))
