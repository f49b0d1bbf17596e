"""Processes of a run by flags and by the environment of a cluster."""

import pytest

from lm.parallel import cluster

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "rack[07-09,12],login",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.mark.parametrize(
    ("env", "flags", "info"),
    [
        ({}, (), None),
        ({}, ("h:1", 2, 1), cluster.ProcessInfo("h:1", 2, 1)),
        ({}, ("h:1", 1, 0), None),
        ({}, ("auto",), cluster.ProcessInfo("")),
        (
            {"JOB_COMPLETION_INDEX": "3"},
            ("job-0.net:9", 4),
            cluster.ProcessInfo("job-0.net:9", 4, 3),
        ),
        (SLURM, (), cluster.ProcessInfo("rack07:61441", 4, 3, [1])),
        (SLURM | {"CUDA_VISIBLE_DEVICES": "1"}, (), cluster.ProcessInfo("rack07:61441", 4, 3)),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_STEP_NODELIST": "a-1,b-2"},
            (),
            cluster.ProcessInfo("a-1:61441", 4, 3),
        ),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, (), None),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, (), cluster.ProcessInfo("")),
        ({"TPU_WORKER_HOSTNAMES": "t-0"}, (), None),
    ],
)
def test_process_is_found_by_flags_and_environment(env, flags, info):
    assert cluster.find_processes(env, *flags) == info


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h", 2, 0), "--coordinator=h must be host:port of process 0, or auto"),
        (("h:1", 2, 2), "--process=2 must be at least 0 and below --processes=2"),
        (("h:1", 2), "--process=-1 must be"),
        (("", 2, 0), "--coordinator= must be"),
    ],
)
def test_incomplete_flags_are_rejected(flags, message):
    with pytest.raises(ValueError, match=message):
        cluster.find_processes({}, *flags)


@pytest.mark.parametrize(
    "name", ["SLURM_STEP_NODELIST", "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"]
)
@pytest.mark.parametrize("value", [None, "", "x"])
def test_incomplete_slurm_environment_is_refused(name, value):
    env = {key: text for key, text in SLURM.items() if key != name}
    if value == "x" and name == "SLURM_STEP_NODELIST":
        return  # a node can have this name
    with pytest.raises(ValueError, match=f"{name}='{value or ''}' .* Start with srun"):
        cluster.find_processes(env if value is None else env | {name: value})


def test_nodes_of_the_job_replace_those_of_the_step():
    env = {key: text for key, text in SLURM.items() if key != "SLURM_STEP_NODELIST"}
    env |= {"SLURM_JOB_NODELIST": "n[3-4]"}
    assert cluster.find_processes(env) == cluster.ProcessInfo("n3:61441", 4, 3, [1])


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "MEGASCALE_NUM_SLICES"])
def test_number_of_processes_must_be_a_number(name):
    assert cluster.find_processes({name: ""}) is None
    with pytest.raises(ValueError, match=f"{name}='two'"):
        cluster.find_processes({name: "two"})
