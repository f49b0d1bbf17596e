"""Shared fixtures of the tests: four devices on every machine, and fast compilation.

Compilation takes most of the time of the tests. fast_compilation.FLAGS reduce it to a third
(experiments/LOG.md), and step.CACHE traces runs of one shape once.
"""

import copy
import gc
import os
import pathlib
import shutil
import sys

import jax
import pytest
from fixtures import shared_fits

from experiments.benchmarks import fast_compilation
from experiments.benchmarks.attack import simulated_bucket
from lm.config import model_sizes, schema
from lm.laws import estimation
from lm.parallel import mesh
from lm.runs import records
from lm.training import loop, step

os.environ.setdefault("MPLBACKEND", "agg")
# Without bytecode, each worker compiles all tests, and each process that tests start all of lm.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The workers and the processes that tests start inherit it. Threads of OpenBLAS wait in a loop.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# XLA reads the flags when it first compiles, also in the processes that tests start.
# On a busy machine, eight simulated devices wait for each other longer than the default of 40 s.
WAIT = "--xla_cpu_collective_call_terminate_timeout_seconds=300"
os.environ.setdefault("XLA_FLAGS", f"{fast_compilation.FLAGS} {WAIT}")
jax.config.update("jax_num_cpu_devices", 4)
# With files in memory, tests of runs take 0.85 of the time and 0.95 of the CPU time.
MEMORY = pathlib.Path("/dev/shm")
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**32:
    if not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC:  # tests start scripts
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # of the processes that tests start
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

step.CACHE.size = 1000

# Collections of garbage take a third of the time in which pytest imports all tests, and 5% later.
gc.set_threshold(50_000, 20, 20)

# No test cuts the power. A wait for the disk costs 5 to 25 ms, and a short run has 22 of them.
os.fsync = lambda descriptor: None

# The peak of a CPU is measured once per mesh: two seconds with the default size.
mesh.peak_flops_per_second.__wrapped__.__defaults__ = (128,)

LINES = "The quick brown fox jumps over the lazy dog, number {n}, and then it sleeps for a while.\n"


# Files with the longest tests, from the longest one. They run first: a process that started with
# the last of them at the end would work alone.
LONG_FILES = (
    *("test_documentation.py", "test_report.py", "test_step.py", "test_decoding.py"),
    *("test_coordinate_check.py", "test_transformer.py", "test_loop.py", "test_faults.py"),
    *("test_mesh.py", "test_multiprocess.py", "test_commands.py", "test_report_sections.py"),
    *("test_vmapped_runs.py", "test_notebooks.py", "test_page_layout.py", "test_optimizer.py"),
    *("test_session.py", "test_moe.py", "test_question_parity.py", "test_lora.py"),
    *("test_warm_start.py", "test_prediction_audit.py", "test_scaling.py", "test_roofline.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by LONG_FILES. The order within a file does not change."""
    ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish() -> None:
    """Exclude the imported modules and the collected tests from collections of garbage."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Report a test without collections of garbage.

    The report of a failure parses the source. A finalizer that fails meanwhile is reported too and
    parses its source, which ends Python 3.11.7 with a SystemError (python/cpython issue 106905).
    """
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return (yield)
    finally:
        if is_collecting:
            gc.enable()


@pytest.fixture(autouse=True)
def sources_are_parsed_without_collections(request):
    """Disable collections of garbage in tests that parse sources: see pytest_runtest_makereport."""
    is_parsing = "project" in request.path.parts
    if is_parsing:
        gc.disable()
    yield
    if is_parsing:
        gc.enable()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> pathlib.Path:
    """Write a folder of 80 documents, enough text for a few hundred rows."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(80):
        start = 37 * number
        body = "".join(LINES.format(n=n) for n in range(start, start + 8 + number % 5))
        (folder / f"{number}.txt").write_text(body)
    return folder


@pytest.fixture
def tiny(text_file, tmp_path) -> schema.Run:
    """Return a run that trains in a second."""
    return tiny_run(text_file, tmp_path)


def tiny_run(text_file: pathlib.Path, folder: pathlib.Path) -> schema.Run:
    """Return the run of the fixture `tiny`, for fixtures with a wider scope."""
    run = schema.Run(name="tiny", dir=str(folder / "runs"), steps=12, log_interval=2)
    run.checkpoint_interval = 4
    run.model = model_sizes.ladder_model("10K", n_layers=2, vocab_size=256)
    run.data.sources, run.data.cache_dir = (
        {f"text:{text_file}": 1.0},
        str(text_file.parent / "data"),
    )
    run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 8, 0.2
    run.eval.n_sequences, run.eval.n_completions = 16, 32
    return run


@pytest.fixture(scope="session")
def finished_run(text_file, tmp_path_factory) -> schema.Run:
    """Return the run of `tiny` after its training. Tests must not change its files."""
    run = tiny_run(text_file, tmp_path_factory.mktemp("finished"))
    loop.train(run)
    return run


@pytest.fixture
def finished_copy(finished_run, tmp_path) -> schema.Run:
    """Return a copy of the finished run with its files, which a test may change."""
    run = copy.deepcopy(finished_run)
    run.dir = str(tmp_path / "runs")
    shutil.copytree(records.run_dir(finished_run), records.run_dir(run))
    return run


@pytest.fixture
def built_anew(monkeypatch):
    """Give tests that replace parts of the functions an own cache of functions."""
    monkeypatch.setattr(step.CACHE, "programs", {})


@pytest.fixture(scope="session")
def finished_fits() -> dict[str, tuple]:
    """Return the fits of this process by the text of all inputs of a fit."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def equal_problems_are_fitted_once(request, finished_fits):
    """Copy the fit of an equal problem in tests of reports. The tests of audits repeat each fit."""
    with pytest.MonkeyPatch.context() as patch:
        if "reports" in request.path.parts and "audit" not in request.path.parts:
            fit_once = shared_fits.make_fit_once(finished_fits)
            patch.setattr(estimation, "fit_problem", fit_once)
        yield


@pytest.fixture(scope="session")
def bucket_server():
    """Serve a fake bucket. Tensorstore reads its address once per process."""
    with simulated_bucket.open_bucket():
        yield


@pytest.fixture
def bucket(bucket_server) -> simulated_bucket.Objects:
    """Return an empty fake bucket, gs://bucket, for etils, orbax and tensorstore."""
    simulated_bucket.STORE.objects.clear()
    return simulated_bucket.STORE
