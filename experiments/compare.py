"""Compare two recipes: is B better than A, by what factor of compute, and does it last at scale?

    lms compare runs/adamw runs/muon
    lms compare runs/adamw runs/muon --out=runs/compare --candidates=3
    lms compare 'runs/optimizers?optim.name=adamw' 'runs/optimizers?optim.name=muon'
    lms compare sweeps/adamw.py sweeps/muon.py
    lms compare adamw.py muon.py --sizes=10K,25K,60K --seeds=3
    lms compare runs/adamw runs/muon --decide --time_budget=30m
    lms compare --verify=runs/compare

A and B are folders of sweeps or of archives. FOLDER?FIELD=VALUE selects the runs of a sweep of
several recipes. A and B may also be sweep files, or configs with --sizes. Their runs are then
trained first, by experiments.sweep.

The multiplier m is the factor by which A needs more FLOPs, seconds or parameters to reach the loss
of B. Intervals include the noise of the seeds and of the held-out documents. Those beyond the
ladder also include the uncertain form of the laws.

--decide trains further pairs of runs until the verdict is not undecided, or the budget is used. Its
tests are valid after every run, so stopping early does not increase their error. If the plan states
that more pairs would not decide, training continues, because the plan depends on noisy estimates.
Pass --anytime from the first comparison on, if you plan to add runs. The same command continues it.

The folder --out has comparison.json, comparison.html and the figure. --verify=FOLDER repeats the
comparison from the records of the runs. The exit status is 1 if a run or a number has changed.
"""

import json
from pathlib import Path

from absl import flags

from experiments.common import cli, console, flag_checks, next_command
from experiments.common.ladder_search import limits
from lm.runs import filesystem

_A = flags.DEFINE_string("a", "", "first recipe: folder of a sweep, sweep file or config")
_B = flags.DEFINE_string("b", "", "second recipe, which is compared with the first")
_OUT = flags.DEFINE_string("out", "", "folder of the report and the record; default: no files")
_JSON = flags.DEFINE_bool("json", False, "print JSON instead of text")
_LOSS = flags.DEFINE_string("loss", "", "column of the loss; default: eval.loss or bits per byte")
_CANDIDATES = flags.DEFINE_integer("candidates", 1, "number of recipes compared with A", 1, 10_000)
_ERROR = flags.DEFINE_float("error", 0.05, "probability of a false difference", 1e-6, 0.5)
_ANYTIME = flags.DEFINE_bool("anytime", False, "tests that stay valid if runs are added later")
_DECIDE = flags.DEFINE_bool("decide", False, "train further pairs of runs until it is decided")
_TIME_BUDGET = flags.DEFINE_string("time_budget", "30m", "limit of --decide, such as 45s, 30m, 2h")
_SIZES = flags.DEFINE_list("sizes", [], "sizes of the ladder of two configs, such as 10K,25K,60K")
_SEEDS = flags.DEFINE_integer("seeds", 2, "seeds per size of the ladder of two configs", 1, 1000)
_VERIFY = flags.DEFINE_string("verify", "", "folder of --out to verify")
POSITIONAL = ("a", "b")  # flags of the arguments that are no flags


def main() -> int:
    check_flags()
    if _VERIFY.value:
        return verify(_VERIFY.value)
    if not (_A.value and _B.value):
        raise ValueError("two recipes are needed: experiments.compare runs/A runs/B")
    if _OUT.value and filesystem.open_path(_OUT.value).is_file():
        raise ValueError(f"--out={_OUT.value} is a file: name a folder")
    budget = limits.parse_duration(_TIME_BUDGET.value)
    check_ladders([_A.value, _B.value])
    folders = [prepare_sweep(recipe) for recipe in (_A.value, _B.value)]
    report = decide(folders, budget) if _DECIDE.value else compare(folders, _ANYTIME.value)
    if _JSON.value:
        from lm.runs import json_files

        print(json.dumps(json.loads(json_files.to_json(report.to_dict())), indent=1))
    else:
        for line in report.lines():
            console.print_sentence(line)
        _print_next(folders)
    if _OUT.value:
        write_files(report, folders)
    return 0


def check_flags() -> None:
    """Raise ValueError for flags that have no effect together."""
    if _VERIFY.value:
        names = *POSITIONAL, "out", "json", "loss", "candidates", "error", "anytime", "decide"
        flag_checks.reject_flags(names, f"has no effect with --verify={_VERIFY.value}")
    if not _DECIDE.value:
        flag_checks.reject_flags(["time_budget"], "has an effect only with --decide")
    if not _SIZES.value:
        flag_checks.reject_flags(["seeds"], "has an effect only with --sizes")


def _print_next(folders: list[str]) -> None:
    """Print the command that verifies the record, or that writes it."""
    if _OUT.value:
        next_command.print_next("compare", f"--verify={_OUT.value}")
        return
    names = "loss", "candidates", "error"
    given = [f"--{name}={flags.FLAGS[name].value}" for name in names if flags.FLAGS[name].present]
    if _ANYTIME.value or _DECIDE.value:  # a test of a fixed number of runs would be invalid
        given.append("--anytime")
    next_command.print_next("compare", *folders, *given, "--out=runs/compare")


def compare(folders: list[str], is_anytime: bool):
    """Return the recipe_report.RecipeReport of two folders of sweeps."""
    from lm.laws.recipe_comparison import recipe_verdict
    from lm.reports.recipes import recipe_report

    for folder in folders:
        cli.check_has_runs(recipe_report.split_recipe(folder)[0])
    options = recipe_verdict.ComparisonOptions(
        y=_LOSS.value,
        error=_ERROR.value,
        n_candidates=_CANDIDATES.value,
        is_anytime=is_anytime,
    )
    rows_a, rows_b = (recipe_report.load_recipe(folder) for folder in folders)
    return recipe_report.compare_rows(rows_a, rows_b, options)


def check_ladders(recipes: list[str]) -> None:
    """Raise ValueError if both recipes are configs whose ladders have the same sweep name."""
    if not _SIZES.value:
        return
    from experiments.common import recipe_ladders

    is_folder = [filesystem.open_path(recipe.partition("?")[0]).is_dir() for recipe in recipes]
    names = {recipe_ladders.ladder_name(recipe) for recipe in recipes}
    if not any(is_folder) and len(names) == 1:
        raise ValueError(
            f"{recipes[0]} and {recipes[1]} have the same file name, so both ladders would be the"
            f" sweep {names.pop()}: rename one of the files"
        )


def prepare_sweep(recipe: str) -> str:
    """Return the folder of a recipe. Train it first if the recipe is a sweep file or a config."""
    from lm.reports.recipes import recipe_report

    if filesystem.open_path(recipe_report.split_recipe(recipe)[0]).is_dir():
        return recipe
    if ".py" not in recipe:
        raise ValueError(
            f"{recipe} is no folder and no Python file: pass the folder of a sweep, a sweep file or"
            " a config"
        )
    from experiments.common import recipe_ladders

    if _SIZES.value:
        recipe = recipe_ladders.ladder_location(recipe, _SIZES.value, _SEEDS.value)
    runs = cli.load_sweep(recipe)
    check_trained(recipe, recipe_ladders.train_sweep(recipe))
    return str(filesystem.open_path(runs[0].dir) / runs[0].name.split("/")[0])


def decide(folders: list[str], budget_seconds: float):
    """Train further pairs of runs until the verdict is not undecided. Return the last report."""
    from experiments.common import recipe_ladders

    if any("?" in folder for folder in folders):
        raise ValueError(
            "--decide needs a folder per recipe, without ?FIELD=VALUE: train them as two sweeps"
        )

    def train_pairs(size, n_pairs: int) -> None:
        console.print_line(f"training {n_pairs} more pairs of runs at {size.name}")
        seeds = recipe_ladders.next_seeds(size, n_pairs)
        for folder, tuned in zip(folders, size.tuned, strict=True):
            label = tuned[0]["name"].rpartition("/")[2]
            location = recipe_ladders.seeds_location(folder, {label: seeds})
            check_trained(location, recipe_ladders.train_sweep(location))

    report, reason = recipe_ladders.decide(
        lambda: compare(folders, is_anytime=True), train_pairs, budget_seconds
    )
    if reason:
        console.print_line(f"not decided: {reason}")
    return report


def check_trained(recipe: str, status: int) -> None:
    """Raise ValueError if the training of a recipe has ended with an exit status above 0."""
    if status:
        raise ValueError(
            f"{recipe} was not trained completely (exit status {status}): repeat the command"
        )


def write_files(report, folders: list[str]) -> None:
    """Write the record, the page and the figure, and print their paths."""
    from lm.reports.recipes import comparison_record, recipe_report

    title = " against ".join(Path(folder).name for folder in reversed(folders))
    sources = dict(zip("AB", folders, strict=True))
    record = comparison_record.write_record(report, _OUT.value, sources)
    page = recipe_report.write_comparison_page(report, _OUT.value, title)
    if not _JSON.value:
        console.print_line(f"record: {record}")
        console.print_line(f"report: {page}")


def verify(folder: str) -> int:
    """Print the links of a stored comparison. Return 1 for a contradiction, else 0."""
    from lm.reports.audit import prediction_audit, prediction_chain
    from lm.reports.recipes import comparison_record

    links = comparison_record.verify_record(folder)
    for line in prediction_audit.format_links(links):
        console.print_line(line)
    n_contradictions = sum(link.status == prediction_chain.CONTRADICTION for link in links)
    console.print_line(f"contradictions: {n_contradictions} of {len(links)} links")
    console.print_line(f"SHA-256 of the record: {comparison_record.record_sha256(folder)}")
    return int(n_contradictions > 0)


if __name__ == "__main__":
    cli.run_main(main, POSITIONAL)
