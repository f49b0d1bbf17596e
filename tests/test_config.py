import dataclasses
import json

import pytest

from lm import config


def test_json_and_back_is_the_same_run():
    run = config.Run(name="a/b")
    run.optim.lr, run.data.sources = 0.5, {"code": 1.0}
    assert config.from_dict(json.loads(json.dumps(config.to_dict(run)))) == run


def test_an_unknown_knob_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="optim.lrr does not exist: did you mean optim.lr"):
        config.from_dict({"optim": {"lrr": 1}})
    with pytest.raises(ValueError, match="optim=3 must hold knobs"):
        config.from_dict({"optim": 3})


def test_flatten_names_every_knob_once_and_types_agree():
    flat, types = config.flatten(config.Run()), config.field_types(config.Run)
    assert list(flat) == list(types)
    assert all(isinstance(flat[name], kind) for name, kind in types.items())


def test_every_knob_is_explained_beside_it():
    source = open(config.__file__, encoding="utf-8").read()
    for group in (config.Model, config.Data, config.Optim, config.Mesh, config.Eval):
        for field in dataclasses.fields(group):
            line = next(ln for ln in source.splitlines() if ln.startswith(f"    {field.name}: "))
            assert "#" in line or field.name in ("sources", "rules"), line
