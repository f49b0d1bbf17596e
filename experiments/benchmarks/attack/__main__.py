"""Attack the project with seeded faults, and count the outcomes of each area.

    uv run python -m experiments.benchmarks.attack --minutes=30
    uv run python -m experiments.benchmarks.attack --minutes=5 --areas=kills,damage --seed=1000
    uv run python -m experiments.benchmarks.attack --case=damage:17

Areas: kills of commands at random moments; damaged files; races of processes; resources (quota,
file handles, moved folders, buckets); mutated configs; changes between a stop and a resume; and
malicious folders. Rounds of cases visit all areas until the time limit. 20 rounds have 100 kills,
500 damaged files, 20 races, 40 faults of resources and 2,400 configs, and take about an hour.

Permitted outcomes: same (equal bits), repaired (equal bits and a line about it), refused (one line,
exit status 2) and excluded (a run without a result, with a reason). Every other outcome is printed
with the flag that repeats it. The exit status is 1 if there is any.
"""

import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from experiments.benchmarks.attack import outcomes, subjects
from experiments.benchmarks.attack.areas import (
    damage,
    kills,
    malicious,
    mutated_configs,
    races,
    resources,
    resumes,
)
from experiments.common import cli, console

_MINUTES = flags.DEFINE_float("minutes", 10.0, "time limit; a case that has begun ends", 0)
_SEED = flags.DEFINE_integer("seed", 0, "seed of the first case of each area", lower_bound=0)
_AREAS = flags.DEFINE_list("areas", None, "areas to attack; default: all")
_CASES = flags.DEFINE_integer("cases", 0, "largest number of cases per area; 0: no limit", 0)
_CASE = flags.DEFINE_string("case", "", "AREA:SEED, a single case to repeat")
_FOLDER = flags.DEFINE_string("folder", None, "working folder that remains; default: temporary")

REAL = "new interpreter"  # column with the number of cases that ran a real command
RunCase = Callable[[int, subjects.Subjects], outcomes.Outcome]
AREAS: dict[str, RunCase] = {
    "kills": kills.run_case,
    "damage": damage.run_case,
    "races": races.run_case,
    "resources": resources.run_case,
    "configs": mutated_configs.run_case,
    "resumes": resumes.run_case,
    "malicious": malicious.run_case,
}
# Cases of an area in one round: the areas differ in the time of a case.
CASES_PER_ROUND = {"kills": 5, "damage": 25, "races": 1, "resources": 2, "configs": 3}


def main() -> int:
    """Attack until the time limit, and print a table of the areas."""
    names = _AREAS.value or list(AREAS)
    single, _, seed = _CASE.value.partition(":")
    for name in (*names, *([single] if single else [])):
        if name not in AREAS:
            raise ValueError(f"area={name} does not exist: use one of {', '.join(AREAS)}")
    if single and not seed.isdigit():
        raise ValueError(f"--case={_CASE.value} must be AREA:SEED, such as damage:17")
    root = Path(_FOLDER.value or tempfile.mkdtemp(prefix="attack-")).absolute()
    if (root / "inputs").exists():
        raise ValueError(f"--folder={root} contains an earlier attack: choose another folder")
    try:
        attacked = subjects.build(root)
        if single:
            outcome = AREAS[single](int(seed), attacked)
            console.print_line(f"{_CASE.value}: {outcome.kind}: {outcome.detail}")
            return int(outcome.kind == "failed")
        counts, failures = attack(plan_cases(names, _SEED.value), attacked, 60 * _MINUTES.value)
    finally:
        if not _FOLDER.value:
            shutil.rmtree(root, ignore_errors=True)
    console.table(table_lines(counts))
    console.print_line(f"failed cases: {len(failures)}")
    return int(bool(failures))


def plan_cases(names: list[str], first_seed: int) -> Iterator[tuple[str, int]]:
    """Yield (area, seed) pairs in rounds that visit all areas."""
    seeds = dict.fromkeys(names, first_seed)
    limit = first_seed + (_CASES.value or 1_000_000)
    while any(seed < limit for seed in seeds.values()):
        for name in names:
            for _ in range(CASES_PER_ROUND.get(name, 2)):
                if seeds[name] < limit:
                    yield name, seeds[name]
                    seeds[name] += 1


def attack(
    cases: Iterator[tuple[str, int]], attacked: subjects.Subjects, seconds: float
) -> tuple[dict[str, Counter], dict[str, str]]:
    """Run cases until the time limit. Return {area: counts by outcome} and the failures by case."""
    counts: dict[str, Counter] = {}
    failures: dict[str, str] = {}
    began = time.monotonic()
    for area, seed in cases:
        if time.monotonic() - began > seconds:
            break
        try:
            outcome = AREAS[area](seed, attacked)
        except Exception:  # a fault of the attack itself must not end it
            outcome = outcomes.Outcome("failed", f"in the attack: {traceback.format_exc()[-800:]}")
        counts.setdefault(area, Counter()).update(outcome.counts or {outcome.kind: 1})
        counts[area][REAL] += outcome.is_real
        if outcome.kind == "failed":
            failures[f"{area}:{seed}"] = outcome.detail
            console.print_line(f"failed, --case={area}:{seed}: {outcome.detail}")
    return counts, failures


def table_lines(counts: dict[str, Counter]) -> list[dict[str, str]]:
    """Return a table row per area: the number of cases and of each outcome."""
    lines = []
    for area, count in counts.items():
        tried = sum(count[kind] for kind in outcomes.KINDS) - count["skipped"]
        line = {"area": area, "tried": f"{tried:,}", REAL: f"{count[REAL]:,}"}
        lines.append(line | {kind: f"{count[kind]:,}" for kind in outcomes.KINDS})
    return lines


if __name__ == "__main__":
    cli.run_main(main)
