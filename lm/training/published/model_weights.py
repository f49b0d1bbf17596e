"""Weights of published models on the devices of this machine.

    run = divide_over_devices(run)                      # a mesh that divides the weights
    weights = load_weights(model, run, mesh.make_mesh(run.mesh))

No device and no process has the whole model in memory if the mesh divides it.
"""

import dataclasses

import jax

from lm.config import schema
from lm.model import params, transformer
from lm.model.hf import load
from lm.parallel import distributed, mesh
from lm.training.published import model_folders


def divide_over_devices(run: schema.Run) -> schema.Run:
    """Return the run with a mesh that divides its weights over as many devices as its sizes allow.

    data.batch_size is increased to a multiple of the devices.
    """
    n_devices = len(distributed.list_devices())
    batch_size = -(-run.data.batch_size // n_devices) * n_devices
    data = dataclasses.replace(run.data, batch_size=batch_size)
    for n_parts in range(n_devices, 0, -1):
        divided = dataclasses.replace(run, mesh=schema.Mesh(fsdp=n_parts), data=data)
        try:
            mesh.make_run_mesh(divided)
        except ValueError:
            continue
        return divided
    raise ValueError(f"{run.name}: no mesh of {n_devices} devices divides the model")


def load_weights(
    model: model_folders.PublishedModel, run: schema.Run, device_mesh: jax.sharding.Mesh
) -> dict:
    """Return the weights of a model with the shardings of a run.

    Raises ValueError with the file and the tensor if the files do not fit config.json.
    """
    rules = mesh.ShardingRules.from_config(run.mesh)
    shardings = load.mesh_shardings(model.shape, device_mesh, rules)
    weights = load.read_weights(model.folder, model.shape, model.architecture, shardings)
    abstract = jax.eval_shape(lambda: transformer.init_params(model.shape, 0))
    arrays = [weights[path] for path in params.flatten_by_path(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)
