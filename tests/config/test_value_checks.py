"""Each value has a type, bounds and a path that the process can use."""

import pathlib
import subprocess
import sys

import pytest

from lm.config import fields, schema, validation, value_checks

FLOATS = [name for name, kind in schema.field_types(schema.Run).items() if kind is float]


def rejection(field: str, value) -> str:
    """Return the error message for a run with this value, "" if the run is valid."""
    run = schema.Run()
    group, _, name = field.rpartition(".")
    setattr(getattr(run, group) if group else run, name, value)
    try:
        validation.validate_run(run)
    except schema.ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("field", FLOATS)
def test_every_float_is_bounded_on_both_sides(field):
    """No value overflows or vanishes as float32."""
    assert f"{field}=1e+39 must be" in rejection(field, 1e39)
    assert rejection(field, 1e-300).startswith(f"{field}=1e-300 ")
    assert "float32" not in rejection(field, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.b1", 1.0, "optim.b1=1.0 must be between 0 and 0.999999"),
        ("optim.b2", 1.0, "optim.b2=1.0 must be between 0 and 0.999999"),
        ("optim.eps", 1e-40, "optim.eps=1e-40 must be at least 1e-30"),
        ("optim.clip_norm", 1e-9, "optim.clip_norm=1e-09 is too small: use at least 1e-06 or 0"),
        ("model.norm_eps", 2.0, "model.norm_eps=2.0 must be at most 1"),
        ("model.norm_eps", 1e-20, "model.norm_eps=1e-20 is too small: use at least 1e-12"),
        ("model.logit_softcap", 1e-3, "is too small: use at least 0.01 or 0"),
        ("optim.lr", 0.0, "optim.lr=0.0 must be above 0 and at most 1e+38"),
        ("steps_per_call", 10**6, "steps_per_call=1000000 must be between 0 and 128"),
        ("data.decontaminate_ngram", 10**9, "must be between 0 and 999"),
        ("data.tokenizer", "bpe:" + "9" * 5000, "must have a size from 258"),
        ("data.sources", {"text:" + "x" * 5000: 1.0}, "has 5005 characters: use at most 4096"),
        ("data.forbidden_tasks", "x" * 10**5, "has 100000 characters: use at most 65536"),
        ("dir", "x" * 300, "contains a name of 300 bytes: use at most 255"),
        ("dir", "x/" * 3000, "bytes: use at most 3584"),
        ("data.cache_dir", "ü" * 128, "contains a name of 256 bytes: use at most 255"),
        ("dir", "a\nb", "contains a control character: rename the folder"),
        ("data.sources", {"code": [10**5000]}, "data.sources['code']=a value of type list must"),
    ],
)
def test_value_beyond_its_bound_is_rejected(field, value, message):
    text = rejection(field, value)
    assert message in text and len(text) < 500 and "\n" not in text


@pytest.mark.parametrize("field", fields.fields_with("path", schema.Run))
def test_usual_folders_are_valid(field):
    for folder in (".", "../a b/ü", "/tmp/x", "gs://bucket/folder", "~/x"):
        assert rejection(field, folder) == ""


def test_path_beyond_the_locale_is_rejected(tmp_path):
    """With LC_ALL=C and without the UTF-8 mode, no library can write to a path beyond ASCII."""
    folder = tmp_path / "ü"
    folder.mkdir()
    code = (
        "from lm.config import schema, validation\n"
        "for folder in ('\\xfc', 'runs'):\n"
        "    try: validation.validate_run(schema.Run(dir=folder))\n"
        "    except schema.ConfigError as error: print(ascii(str(error)))\n"
    )
    root = pathlib.Path(schema.__file__).parents[2]
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=True
    )
    lines = result.stdout.decode().splitlines()
    assert len(lines) == 2
    assert all(
        "that the locale (ascii) cannot represent: set PYTHONUTF8=1" in line for line in lines
    )


def test_path_may_have_wide_spaces_and_joiners():
    value_checks.check_path("dir", "日本\u3000語/a\u200db/c\u00a0d")
