"""Writes the report of a sweep again, from its records alone.

uv run python -m experiments.report --dir=runs/quickstart
uv run python -m experiments.report --dir=runs/quickstart --verify=runs/quickstart/figures/x.png
"""

from absl import flags

from experiments import cli, show

_DIR = flags.DEFINE_string("dir", "runs/quickstart", "folder of the sweep")
_VERIFY = flags.DEFINE_string("verify", None, "a figure: does it still show what the records say?")


def main() -> int:
    from lm import report

    if _VERIFY.value:
        changed = report.verify(_VERIFY.value, _DIR.value)
        show.say("\n".join(changed) or f"{_VERIFY.value} still holds")
        return int(bool(changed))
    show.say(str(report.write(_DIR.value)))
    return 0


if __name__ == "__main__":
    cli.start(main)
