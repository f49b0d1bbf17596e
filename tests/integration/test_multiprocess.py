"""Several processes that train one run: equal decisions, equal losses, detection of dead peers."""

import dataclasses
import json
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from lm.config import schema
from lm.parallel import distributed, mesh
from lm.runs import json_files, records
from lm.training import loop

ROOT = pathlib.Path(__file__).parent.parent.parent
CACHE = ROOT / ".pytest_cache" / "compiled"
# The measurement of the peak takes seconds, and no test uses its result.
SCRIPT = """
import json, sys, jax
config, cache, devices, coordinator, processes, process = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_compilation_cache_dir", cache)
from lm.config import schema
from lm.parallel import distributed, mesh
from lm.training import loop, preemption
mesh.initialize_devices()
mesh.peak_flops_per_second = lambda *_: 1e9
distributed.initialize_processes(coordinator, int(processes), int(process))
try:
    loop.train(schema.from_dict(json.loads(config)), lambda row: print(row["step"], flush=True))
except (preemption.Interrupted, ValueError) as error:
    print(type(error).__name__, error, file=sys.stderr)
    distributed.exit_process(9)
"""


def start(run: schema.Run) -> list[subprocess.Popen]:
    """Train the run in 2 processes of 4 devices, which print a line per log step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = []
    for process in range(2):
        arguments = (json.dumps(schema.to_dict(run)), CACHE, 4, coordinator, 2, process)
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT))
    return processes


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.strip() == str(step):
            return
    pytest.fail(process.communicate()[1][-2000:])


def wait_for_exit(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Return the exit statuses and the text on stderr. Fail if a process hangs."""
    errors = [process.communicate(timeout=200)[1] for process in processes]
    return [process.returncode for process in processes], errors


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_killed_processes_are_resumed_by_one_process(tiny):
    """One of two processes gets SIGKILL, then SIGTERM; then a single process finishes the run."""
    uninterrupted = dataclasses.replace(tiny, name="uninterrupted", log_interval=1)
    loop.train(uninterrupted)
    tiny.mesh, tiny.log_interval, tiny.steps = schema.Mesh(fsdp=2), 1, 12
    folder = records.run_dir(tiny)

    processes = start(tiny)
    wait_for_step(processes[0], 6)
    processes[1].kill()
    (status, _), (errors, _) = wait_for_exit(processes)
    assert status == distributed.EXIT_PEER_DIED, errors
    assert "process 0 of 2: another process died" in errors
    (row,) = records.load_runs(folder)
    assert row["status"] == "lost"

    processes = start(tiny)
    wait_for_step(processes[0], 8)
    processes[1].send_signal(signal.SIGTERM)  # both processes stop at the same step
    statuses, errors = wait_for_exit(processes)
    assert statuses == [9, 9] and errors[0].strip() == errors[1].strip(), errors
    facts = records.read_facts(folder)
    assert "stopped by SIGTERM at step" in facts["reason"]
    assert facts["resumed_from"] in (0, 4)  # the kill may have interrupted the save at step 4
    assert facts["devices"] == 8 and facts["attempts"] == 2

    tiny.mesh = schema.Mesh()
    loop.train(tiny)
    assert records.read_facts(folder)["attempts"] == 3
    assert list(losses(tiny)) == list(range(1, 13))
    resumed, expected = losses(tiny), losses(uninterrupted)
    np.testing.assert_allclose([*resumed.values()], [*expected.values()], rtol=1e-4)
    assert len(json_files.read_latest_rows(folder / "evals.jsonl")) == 1


class PartialSharding:
    """The sharding of a mesh in a process that has only some of its devices."""

    def __init__(self, sharding, devices):
        self.sharding, self.devices = sharding, devices

    def addressable_devices_indices_map(self, shape):
        indices = self.sharding.devices_indices_map(shape)
        return {device: indices[device] for device in self.devices}


@pytest.mark.parametrize(
    ("shape", "device_ids", "rows"),
    [
        ({"data": 4}, [0, 1], [0, 1, 2, 3]),
        ({"data": 4}, [3], [6, 7]),  # processes of 3 devices and 1
        ({"data": 2, "fsdp": 2}, [2, 3], [4, 5, 6, 7]),
        ({"data": 2, "tensor": 2}, [1], [0, 1, 2, 3]),
        ({"data": 1, "tensor": 4}, [2, 3], list(range(8))),  # tensor across processes
        ({"data": 2, "tensor": 2}, [1, 3], list(range(8))),
        ({"data": 4}, [0, 3], [0, 1, 6, 7]),
    ],
)
def test_process_loads_the_rows_of_its_devices(shape, device_ids, rows, monkeypatch):
    device_mesh = mesh.make_mesh(schema.Mesh(**shape))
    named_sharding = mesh.named_sharding
    devices = [device_mesh.devices.flat[i] for i in device_ids]
    monkeypatch.setattr(
        mesh, "named_sharding", lambda *names: PartialSharding(named_sharding(*names), devices)
    )
    assert mesh.local_rows(device_mesh, 8).tolist() == rows
