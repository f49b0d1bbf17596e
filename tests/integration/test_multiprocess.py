"""Several processes as one: the same verdicts, the same losses, and no waiting for the dead."""

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
from lm.runs import lock, records
from lm.training import loop

ROOT = pathlib.Path(__file__).parent.parent.parent
CACHE = ROOT / ".pytest_cache" / "compiled"
SCRIPT = """
import json, sys, jax words, cache, devices, place, processes, process = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices)) from lm.config import schema; from
lm.parallel import distributed; from lm.parallel import mesh; from lm.training import loop
mesh.initialize_devices(cache) mesh.peak_flops_per_second = lambda *_: 1e9  # seconds, which no test
looks at distributed.initialize_processes(place, int(processes), int(process)) try:
    loop.train(schema.from_dict(json.loads(words)), lambda row: print(row["step"], flush=True))
except (loop.Interrupted, ValueError) as error:
    print(type(error).__name__, error, file=sys.stderr)
    distributed.exit_process(9)
"""


def start(run: schema.Run, other: schema.Run | None = None) -> list[subprocess.Popen]:
    """The run in 2 processes of 4 devices; a line on stdout each log step."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    started = []
    for process, mine in enumerate((run, other or run)):
        words = (json.dumps(schema.to_dict(mine)), CACHE, 4, place, 2, process)
        command = [sys.executable, "-c", SCRIPT, *map(str, words)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT))
    return started


def await_step(process: subprocess.Popen, step: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.strip() == str(step):
            return
    pytest.fail(process.communicate()[1][-2000:])


def ends(started: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Exit statuses, and what was said on stderr; none may hang."""
    said = [process.communicate(timeout=60)[1] for process in started]
    return [process.returncode for process in started], said


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


@pytest.mark.timeout(180)
def test_two_processes_die_and_one_goes_on_to_the_same_losses(tiny):
    """Killed one by one with SIGKILL and SIGTERM; then 1 process of 2 devices ends the run."""
    whole = dataclasses.replace(tiny, name="whole", log_interval=1)
    loop.train(whole)
    tiny.mesh, tiny.log_interval, tiny.steps = schema.Mesh(fsdp=2), 1, 12
    folder = records.run_dir(tiny)

    started = start(tiny)
    await_step(started[0], 6)
    started[1].kill()
    (status, _), (said, _) = ends(started)
    assert status == lock.EXIT_PEER_DIED and "process 0 of 2: another process died" in said, said
    (row,) = records.load_runs(folder)
    assert row["status"] == "lost"

    started = start(tiny)
    await_step(started[0], 8)
    started[1].send_signal(signal.SIGTERM)  # to one: both stop, at the same step
    statuses, said = ends(started)
    assert statuses == [9, 9] and said[0].strip() == said[1].strip(), said
    facts = records.read_facts(folder)
    assert "stopped by SIGTERM at step" in facts["reason"]
    assert facts["resumed_from"] in (0, 4)  # the save at 4 may not have been whole at the kill
    assert facts["devices"] == 8 and facts["attempts"] == 2

    tiny.mesh = schema.Mesh()
    loop.train(tiny)
    assert records.read_facts(folder)["attempts"] == 3
    assert list(losses(tiny)) == list(range(1, 13))
    np.testing.assert_allclose(list(losses(tiny).values()), list(losses(whole).values()), rtol=1e-4)
    assert len(records.parse_json_lines(folder / "evals.jsonl")) == 1


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "rack[07-09,12],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.mark.parametrize(
    ("env", "flags", "place"),
    [
        ({}, (), None),
        ({}, ("h:1", 2, 1), distributed.ProcessInfo("h:1", 2, 1)),
        ({}, ("h:1", 1, 0), None),
        ({}, ("auto",), distributed.ProcessInfo("")),
        (
            {"JOB_COMPLETION_INDEX": "3"},
            ("job-0.net:9", 4),
            distributed.ProcessInfo("job-0.net:9", 4, 3),
        ),
        (SLURM, (), distributed.ProcessInfo("rack07:61441", 4, 3, [1])),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, (), distributed.ProcessInfo("rack07:61441", 4, 3)),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_STEP_NODELIST": "a-1,b-2"},
            (),
            distributed.ProcessInfo("a-1:61441", 4, 3),
        ),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, (), None),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, (), distributed.ProcessInfo("")),
        ({"TPU_WORKER_HOSTNAMES": "t-0"}, (), None),
    ],
)
def test_a_process_finds_its_place_by_flags_and_clusters(env, flags, place):
    assert distributed.find_processes(env, *flags) == place


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("h", 2, 0), "--coordinator=h must be host:port of process 0, or auto"),
        (("h:1", 2, 2), "--process=2 must be at least 0 and below --processes=2"),
        (("h:1", 2), "--process=-1 must be"),
        (("", 2, 0), "--coordinator= must be"),
    ],
)
def test_half_a_place_is_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        distributed.find_processes({}, *flags)


class Split:
    """A sharding as a process with some of the devices of a mesh sees it."""

    def __init__(self, whole, mine):
        self.whole, self.mine = whole, mine

    def addressable_devices_indices_map(self, shape):
        parts = self.whole.devices_indices_map(shape)
        return {device: parts[device] for device in self.mine}


@pytest.mark.parametrize(
    ("shape", "mine", "rows"),
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
def test_a_process_loads_the_rows_of_its_devices(shape, mine, rows, monkeypatch):
    device_mesh = mesh.make_mesh(schema.Mesh(**shape))
    sharding = mesh.named_sharding
    devices = [device_mesh.devices.flat[place] for place in mine]
    monkeypatch.setattr(mesh, "named_sharding", lambda *names: Split(sharding(*names), devices))
    assert mesh.local_rows(device_mesh, 8).tolist() == rows
