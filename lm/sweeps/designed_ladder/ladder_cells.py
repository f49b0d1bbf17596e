"""Cells of a ladder: the sizes and token budgets of a sweep, with any number of seeds each.

ladder = ladder_cells.build_ladder(runs, ladder_cells.LadderGoal("4M", 0.01, 7200))
run = ladder.run("60K", seed=3)
law_fit = ladder.fit_law(rows)
"""

import copy
import dataclasses
import itertools
from collections.abc import Collection, Sequence

from lm.config import model_sizes, schema
from lm.data.tokenization import run_tokenizer
from lm.laws import comparability, fit
from lm.laws.forms import power_laws
from lm.laws.recipe_comparison import paired_runs
from lm.runs import records, run_selection

TOKEN_TOLERANCE = 0.02  # relative difference up to which two token budgets are equal
MIN_SIZES = 4  # a law of three parameters needs one more size for an interval
INPUTS = {"N": records.N_PARAMS, "D": records.TOKENS}


@dataclasses.dataclass(frozen=True)
class LadderGoal:
    """Goal of a ladder: the error of the prediction of a size, and the limit of the time.

    max_error: half the width of the 95% interval of the mean loss over seeds, relative to the loss.
    tokens: training tokens of the target; 0 is the largest budget of the sweep.
    """

    size: str
    max_error: float
    budget_seconds: float
    tokens: float = 0.0


@dataclasses.dataclass(frozen=True)
class LadderCell:
    """A size and a token budget, with the runs of the sweep by seed."""

    label: str  # name of its runs without the sweep and the seed
    n_params: int  # without embeddings
    n_tokens: int
    runs: dict[int, schema.Run]

    def next_seed(self, used: Collection[int]) -> int:
        """Return the first seed of the sweep that is not used, or the smallest other seed."""
        seeds = itertools.chain(sorted(self.runs), itertools.count())
        return next(seed for seed in seeds if seed not in used)

    def run(self, seed: int) -> schema.Run:
        """Return the run of a seed: that of the sweep, or a copy with another seed and name."""
        template = next(iter(self.runs.values()))
        run = copy.deepcopy(self.runs.get(seed, template))
        if seed not in self.runs:
            run.name = f"{run.name.partition('/')[0]}/{self.label}-seed{seed}"
        run.seed, run.is_prediction_target = seed, False
        return run


@dataclasses.dataclass(frozen=True)
class DesignedLadder:
    """Cells of a ladder, cheapest first, and the inputs of the law at the target."""

    cells: list[LadderCell]
    target: dict[str, float]

    def cell(self, label: str) -> LadderCell:
        """Return the cell of a label. Raises ValueError for a label of another sweep file."""
        for cell in self.cells:
            if cell.label == label:
                return cell
        raise ValueError(
            f"the ladder has decided to train {label}, which the sweep file does not yield:"
            " restore the file, or use another --dir"
        )

    def points(self, cells: Sequence[LadderCell]) -> list[list[float]]:
        """Return the inputs of the law at cells, [inputs, m]."""
        values = {
            "N": [float(cell.n_params) for cell in cells],
            "D": [float(cell.n_tokens) for cell in cells],
        }
        return [values[letter] for letter in self.target]

    def fit_law(self, rows: Sequence[dict]) -> fit.Fit:
        """Fit the law of size, or that of size and tokens, to finished runs.

        Raises ValueError if the runs do not determine the law.
        """
        n_sizes = len({row[records.N_PARAMS] for row in rows})
        if n_sizes < MIN_SIZES:
            raise ValueError(f"{n_sizes} of {MIN_SIZES} sizes are trained")
        if list(self.target) == ["N"]:
            return power_laws.power(rows, x=records.N_PARAMS, y=records.LOSS)
        if refusal := run_selection.refuse_joint_law(rows):
            raise ValueError(refusal)
        return power_laws.chinchilla(rows, n=records.N_PARAMS, y=records.LOSS)


def build_ladder(runs: Sequence[schema.Run], goal: LadderGoal) -> DesignedLadder:
    """Return the cells of the runs of a sweep below the target size, and the target.

    If a size has several token budgets, the law is that of size and tokens. Otherwise it is the law
    of size. Raises ValueError for runs that are no ladder of one recipe, for fewer than MIN_SIZES
    sizes below the target, and for a goal that the law cannot predict.
    """
    n_target = _target_params(runs, goal.size)
    groups: dict[tuple, list[schema.Run]] = {}
    for run in runs:
        if run.start.run:
            raise ValueError(
                f"{run.name} starts from {run.start.run}: a designed ladder has only runs that"
                " start from random weights"
            )
        run = run_tokenizer.resolve_tokenizer(copy.deepcopy(run))
        groups.setdefault(comparability.training_settings(_settings(run)), []).append(run)
    cells = [_make_cell(group) for group in groups.values()]
    _check_one_recipe(cells)
    below = sorted(
        (cell for cell in cells if cell.n_params < n_target),
        key=lambda cell: (cell.n_params * cell.n_tokens, cell.n_params),
    )
    n_sizes = len({cell.n_params for cell in below})
    if n_sizes < MIN_SIZES:
        raise ValueError(
            f"--target_size={goal.size}: the sweep has {n_sizes} smaller sizes, and the law needs"
            f" {MIN_SIZES}: add sizes to the sweep file"
        )
    return DesignedLadder(_with_distinct_labels(below), _target_inputs(below, n_target, goal))


def _settings(run: schema.Run) -> dict:
    """Return the columns that identify a cell: all settings and the training tokens."""
    return schema.flatten(run) | {"optim.tokens": model_sizes.training_tokens(run)}


def _make_cell(group: Sequence[schema.Run]) -> LadderCell:
    """Return the cell of runs that differ only in the seed. Raises ValueError for equal seeds."""
    runs: dict[int, schema.Run] = {}
    for run in group:
        if run.seed in runs:
            raise ValueError(
                f"{runs[run.seed].name} and {run.name} have the same size, tokens and seed: a"
                " designed ladder needs runs of one recipe"
            )
        runs[run.seed] = run
    first = group[0]
    return LadderCell(
        paired_runs.size_name({"name": first.name, "seed": first.seed}),
        model_sizes.count_parameters(model_sizes.resolved_model(first))["non_embedding"],
        model_sizes.training_tokens(first),
        runs,
    )


def _check_one_recipe(cells: Sequence[LadderCell]) -> None:
    """Raise ValueError if two cells have equal sizes and tokens, as in a sweep of rates."""
    ordered = sorted(cells, key=lambda cell: (cell.n_params, cell.n_tokens))
    for first, second in itertools.pairwise(ordered):
        is_same = first.n_params == second.n_params
        if is_same and second.n_tokens <= (1 + TOKEN_TOLERANCE) * first.n_tokens:
            raise ValueError(
                f"{first.label} and {second.label} have equal sizes and tokens and other settings:"
                " a designed ladder needs one recipe per size. Use the tuned settings"
            )


def _with_distinct_labels(cells: Sequence[LadderCell]) -> list[LadderCell]:
    """Return the cells with their tokens in the label if two labels are equal."""
    labels = [cell.label for cell in cells]
    return [
        dataclasses.replace(cell, label=f"{cell.label}-{cell.n_tokens / 1e6:g}M")
        if labels.count(cell.label) > 1
        else cell
        for cell in cells
    ]


def _target_params(runs: Sequence[schema.Run], size: str) -> int:
    """Return the non-embedding parameters of the target: of the run of that size, or the ladder."""
    for run in runs:
        if paired_runs.size_name({"name": run.name, "seed": run.seed}) == size:
            model = model_sizes.resolved_model(run_tokenizer.resolve_tokenizer(copy.deepcopy(run)))
            return model_sizes.count_parameters(model)["non_embedding"]
    try:
        model = model_sizes.ladder_model(size, vocab_size=256)
    except ValueError as error:
        raise ValueError(f"--target_size={size}: {error}") from None
    return model_sizes.count_parameters(model)["non_embedding"]


def _target_inputs(
    cells: Sequence[LadderCell], n_target: int, goal: LadderGoal
) -> dict[str, float]:
    """Return the inputs of the law at the target. Raises ValueError for tokens without effect."""
    budgets: dict[int, list[int]] = {}
    for cell in cells:
        budgets.setdefault(cell.n_params, []).append(cell.n_tokens)
    if max(map(len, budgets.values())) > 1:
        n_budgets = len({f"{cell.n_tokens:.2g}" for cell in cells})
        if n_budgets < run_selection.MIN_BUDGETS:
            raise ValueError(
                f"the sweep has {n_budgets} token budgets, and a law of size and tokens needs"
                f" {run_selection.MIN_BUDGETS}: use one budget per size, or add a budget"
            )
        n_tokens = goal.tokens or max(cell.n_tokens for cell in cells)
        return {"N": float(n_target), "D": float(n_tokens)}
    if goal.tokens:
        raise ValueError(
            f"--target_tokens={goal.tokens:g} needs several token budgets per size, and the sweep"
            " has one: remove the flag"
        )
    return {"N": float(n_target)}
