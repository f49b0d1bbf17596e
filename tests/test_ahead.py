import copy
import pathlib

import jax
import pytest

from lm import ahead, mesh, packs


def compiled(run) -> int:
    """Programs that compiling the run adds to the cache."""
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    before, device_mesh = {*folder.iterdir()}, mesh.make(run.mesh)
    with jax.set_mesh(device_mesh):
        packs.Pack([run], device_mesh).compile(fresh=True)
    return len({path.name for path in {*folder.iterdir()} - before if "-atime" not in path.name})


@pytest.fixture
def cached(tmp_path):
    """An empty cache of programs."""
    from jax.experimental.compilation_cache import compilation_cache

    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", kept)
    compilation_cache.reset_cache()


def test_a_run_finds_the_programs_that_were_compiled_ahead(tiny, cached, monkeypatch):
    tiny.model.d_ff = 40
    monkeypatch.setattr(ahead, "idle_cores", lambda: 1)
    with ahead.Compiler() as compiler:
        compiler.begin(tiny)
    assert compiled(tiny) == 0
    tiny.model.d_ff = 56
    assert compiled(tiny) == 3  # step, score, init


def test_nothing_is_compiled_beside_a_device_on_each_core(tiny, cached):
    assert ahead.idle_cores() == mesh.cores() - jax.device_count()
    if ahead.idle_cores() > 0:
        pytest.skip("a core is idle here")
    tiny.model.d_ff = 72  # of no other test, whose programs this process may still have
    with ahead.Compiler() as compiler:
        compiler.begin(tiny)
    assert compiled(tiny) == 3


def test_what_cannot_be_compiled_is_left_to_the_run_and_the_next_is(tiny, cached, monkeypatch):
    monkeypatch.setattr(ahead, "idle_cores", lambda: 1)
    wrong = copy.deepcopy(tiny)
    wrong.name, wrong.mesh.fsdp, tiny.model.d_ff = "wrong", 1000, 88  # devices that are not there
    with ahead.Compiler() as compiler:
        compiler.begin(wrong)
        compiler.begin(tiny)
        compiler._thread.submit(int).result()  # behind both: leaving would cancel what waits
    assert compiled(tiny) == 0
