"""Where every run of a folder stands.

uv run python -m experiments.status --dir=runs/quickstart
"""

from absl import flags

from experiments import cli, show

_DIR = flags.DEFINE_string("dir", "runs", "folder of runs")


def main() -> int:
    from lm import records

    rows = records.rows(_DIR.value)
    if not rows:
        raise ValueError(f"--dir={_DIR.value} holds no runs")
    lines = []
    for row in rows:
        last = (records.metrics(row["dir"]) or [{}])[-1]
        lines.append(
            {
                "run": row["name"],
                "status": row["status"],
                "step": f"{last.get('step', 0)} of {row['steps']}",
                "loss": f"{last['loss']:.3f}" if last else "",
                "tokens/s": f"{last['tokens_per_second']:,.0f}" if last else "",
                "of peak": f"{last['peak_share']:.0%}" if last else "",
                "trained": show.seconds(last["seconds"]) if last else "",
                "attempts": row.get("attempts", 0),
                "reason": row.get("reason", ""),
            }
        )
    show.table(lines)
    return 0


if __name__ == "__main__":
    cli.start(main)
