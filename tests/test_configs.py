import importlib
import pathlib

import pytest

from lm import checks, launch

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
RECIPES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")
SWEEPS = sorted(p.stem for p in (CONFIGS / "sweeps").glob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_run_and_says_how(name):
    module = importlib.import_module(f"configs.{name}")
    checks.check(module.get_config())
    assert f"--config=configs/{name}.py" in module.__doc__


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_can_run_and_says_how(name):
    module = importlib.import_module(f"configs.sweeps.{name}")
    runs = [checks.check(run) for run in module.get_sweep()]
    assert len({run.name for run in runs}) == len(runs) > 1
    assert str(launch.folder(runs)) == f"runs/{name}"
    assert f"--sweep=configs/sweeps/{name}.py" in module.__doc__


def test_the_quickstart_is_a_ladder():
    from configs.sweeps import quickstart
    from lm import sizes

    runs = list(quickstart.get_sweep())
    n = [sizes.counts(run.model)["non_embedding"] for run in runs]
    assert len(n) >= 6 and n == sorted(n) and n[-1] / n[0] > 50
    assert [run.predict for run in runs] == [False] * (len(runs) - 1) + [True]
