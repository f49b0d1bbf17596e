"""Trains a tiny model for three steps on meshes of eight devices; one JSON line for each mesh.

A process of its own, because the devices of a process are counted once. test_mesh.py reads it.
"""

import concurrent.futures
import json
import os
import re

import jax
import numpy as np

from lm import checks, config, layout, mesh, programs

# Sizes along data, fsdp, expert, sequence, tensor; the first is what all are held against.
MESHES: list[tuple[tuple[int, ...], dict]] = [
    ((1, 1, 1, 1, 1), {}),
    ((8, 1, 1, 1, 1), {}),
    ((1, 8, 1, 1, 1), {}),
    ((1, 1, 1, 8, 1), {"model.attention_blocks": 4}),
    ((4, 1, 1, 1, 2), {}),
    ((1, 4, 1, 1, 2), {}),
    ((2, 2, 1, 1, 2), {"optim.accumulate": 2}),
    ((2, 1, 2, 2, 1), {"model.loss_chunks": 4}),
    ((2, 1, 1, 2, 2), {"model.attention_blocks": 1}),
    ((1, 2, 1, 4, 1), {"model.loss_chunks": 2, "optim.accumulate": 4}),
    ((1, 2, 1, 2, 2), {"model.remat": "full"}),
    ((1, 2, 2, 1, 2), {"model.remat": "dots"}),
    ((2, 2, 1, 1, 2), {"mesh.rules": {"embed": ["data", "fsdp"], "mlp": []}}),
]
B, T = 8, 32
# Compiled in a third of the time; what the compiler does between devices stays the same.
FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def run_on(sizes: tuple[int, ...], knobs: dict) -> config.Run:
    run = config.Run(mesh=config.Mesh(**dict(zip(layout.AXES, sizes, strict=True))))
    run.model = config.Model(64, 16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=32)
    run.model.unroll, run.model.z_loss, run.model.logit_softcap = 1, 1e-2, 4.0
    run.data.seq_len, run.data.batch_size, run.steps = T, B, 10
    run.data.across, run.data.rows = False, "continued"  # segments and weights
    for knob, value in knobs.items():
        group, name = knob.split(".")
        setattr(getattr(run, group), name, value)
    return checks.check(run)


def follow(program: programs.Program, step, state: dict, batch: dict) -> dict:
    """Loss and gradient norm of three steps, and whether the state was given away to them."""
    found, given = [], True
    with jax.set_mesh(program.mesh):
        split = jax.tree.map(lambda leaf: leaf.sharding, program.abstract)
        state, batch = jax.device_put(state, split), mesh.place(program.mesh, batch)
        for _ in range(3):
            before = state
            state, metrics = jax.block_until_ready(step(state, batch, program.inputs))
            found += [float(metrics["loss"]), float(metrics["grad_norm"])]
            given &= all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    return {"losses": found, "given": given}


def main() -> None:
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(1, 64, (B, T + 1)).astype(np.int32),
        "segments": np.sort(rng.integers(0, 3, (B, T))).astype(np.int32),
        "weights": (rng.random((B, T)) * (rng.random((B, 1)) < 0.6)).astype(np.float32),
    }
    ours = []
    for sizes, knobs in MESHES:
        run = run_on(sizes, knobs)
        program = programs.build(run, mesh.make(run.mesh, jax.devices()[: int(np.prod(sizes))]))
        with jax.set_mesh(program.mesh):
            arguments = program.abstract, program.batch, program.inputs
            ours.append((run, program, program.step.lower(*arguments)))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda one: one[2].compile(compiler_options=FAST), ours))
    one = ours[0][1]
    with jax.set_mesh(one.mesh):
        state = jax.device_get(one.init(0))
    for (_, program, _), step in zip(ours, compiled, strict=True):
        facts = follow(program, step, state, batch)
        kinds = re.findall(
            r" (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", step.as_text()
        )
        facts |= {"sizes": dict(program.mesh.shape), "collectives": sorted(set(kinds))}
        print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    main()
