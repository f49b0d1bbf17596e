"""Batch size of each step, and the numbers of tokens and steps that follow from it.

    schedule = BatchSizeSchedule.from_config(run.data)
    schedule.stage(100).batch_size           # rows of step 100, which counts from 0
    schedule.count_tokens(1000)              # tokens of the first 1000 steps
    optim = resolve_tokens(run.optim, schedule, run.steps)      # no field in tokens

The field data.batch_size_warmup lists numbers of training tokens. The batch size doubles at the
first step that begins after each of these numbers, and its last value is data.batch_size (Merrill
et al. 2025, arXiv:2505.23971). Each value is a stage. Without the field, a run has a single stage.
"""

import bisect
import dataclasses
import decimal
import functools
from collections.abc import Mapping
from typing import Any

from lm.config import field_names, optimizer_config, schema

FIELD = "data.batch_size_warmup"


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive steps of equal batch size: their first step, its first row, and the batch size.

    Steps and rows count from 0, over all stages.
    """

    first_step: int
    first_row: int
    batch_size: int

    @property
    def step_offset(self) -> float:
        """Return the earlier rows in steps of this batch size, minus the earlier steps.

        The number is 0 for the first stage, and negative for later ones.
        """
        return self.first_row / self.batch_size - self.first_step


@dataclasses.dataclass(frozen=True)
class BatchSizeSchedule:
    """Batch size as a function of the step. warmup: value of data.batch_size_warmup.

    The functions below raise ConfigError for an invalid value, see `thresholds` and `stages`.
    """

    batch_size: int
    seq_len: int
    warmup: str = ""

    @classmethod
    def from_config(cls, data: schema.Data) -> "BatchSizeSchedule":
        """Return the schedule of a run."""
        return cls(data.batch_size, data.seq_len, data.batch_size_warmup)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "BatchSizeSchedule":
        """Return the schedule of a flat dict of config fields. Older runs have no warm-up."""
        return cls(row["data.batch_size"], row["data.seq_len"], row.get(FIELD, ""))

    @functools.cached_property
    def thresholds(self) -> tuple[int, ...]:
        """Numbers of training tokens after which the batch size doubles.

        Raises ConfigError unless they are positive integers, with or without an exponent.
        """
        return tuple(map(_parse_tokens, self.warmup.split(","))) if self.warmup else ()

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Stages in order, one per batch size.

        Raises ConfigError if the batch size cannot be halved, or if a stage has no step.
        """
        n_doublings = len(self.thresholds)
        if self.batch_size % (1 << n_doublings):
            problem = f"doubles {n_doublings} times, so data.batch_size={self.batch_size} must be"
            remedy = f"a multiple of 2^{n_doublings}: change data.batch_size, or list fewer"
            raise schema.ConfigError(f"{FIELD}={self.warmup!r} {problem} {remedy} numbers")
        stages = [Stage(0, 0, self.batch_size >> n_doublings)]
        for threshold in self.thresholds:
            last = stages[-1]
            n_tokens = threshold - last.first_row * self.seq_len
            n_steps = -(-n_tokens // (last.batch_size * self.seq_len))
            if n_steps < 1:
                problem = f"leaves no step for the batch size {last.batch_size}"
                remedy = f"before {threshold:,} tokens: raise this number, or remove it"
                raise schema.ConfigError(f"{FIELD}={self.warmup!r} {problem} {remedy}")
            first_row = last.first_row + n_steps * last.batch_size
            stages.append(Stage(last.first_step + n_steps, first_row, 2 * last.batch_size))
        return tuple(stages)

    def stage(self, step: int) -> Stage:
        """Return the stage of a step."""
        return self.stages[bisect.bisect(self.stages, step, key=lambda s: s.first_step) - 1]

    def stage_of_tokens(self, n_tokens: float) -> Stage:
        """Return the stage in which a number of training tokens is reached."""
        n_rows = max(n_tokens // self.seq_len, 0)
        return self.stages[bisect.bisect(self.stages, n_rows, key=lambda s: s.first_row) - 1]

    def remaining_stages(self, step: int) -> tuple[Stage, ...]:
        """Return the stage of a step and the stages after it."""
        return self.stages[self.stages.index(self.stage(step)) :]

    def end_of_stage(self, step: int, n_steps: int) -> int:
        """Return the next step with another batch size, or n_steps in the last stage."""
        following = self.remaining_stages(step)[1:]
        return following[0].first_step if following else n_steps

    def count_rows(self, n_steps: int) -> int:
        """Return the number of rows of the first n_steps steps."""
        stage = self.stage(n_steps)
        return stage.first_row + (n_steps - stage.first_step) * stage.batch_size

    def count_tokens(self, n_steps: int) -> int:
        """Return the number of training tokens of the first n_steps steps."""
        return self.count_rows(n_steps) * self.seq_len

    def find_step(self, n_tokens: float) -> int:
        """Return the number of steps that is nearest to a number of training tokens."""
        stage = self.stage_of_tokens(n_tokens)
        n_left = n_tokens - stage.first_row * self.seq_len
        return stage.first_step + _round_quotient(n_left, stage.batch_size * self.seq_len)


def resolve_tokens(
    optim: schema.Optimizer, schedule: BatchSizeSchedule, n_steps: int, stage: Stage | None = None
) -> schema.Optimizer:
    """Return the optimizer with its fields in tokens replaced by warmup_steps, decay_steps and b2.

    n_steps: number of steps of the run. stage: stage of the second moment; None is the last stage.
    Numbers of steps are rounded, to at least 1. The half-life h gives b2 = 2^(-tokens_per_step / h)
    (Marek et al. 2025, arXiv:2507.07101).
    """
    changes: dict[str, int | float] = {}
    if optim.warmup_tokens:
        n_warmup = max(schedule.find_step(optim.warmup_tokens), 1)
        changes |= {"warmup_steps": n_warmup, "warmup_tokens": 0}
    if optim.decay_tokens:
        changes |= {"decay_steps": _decay_steps(optim, schedule, n_steps), "decay_tokens": 0}
    if optim.b2_half_life_tokens:
        tokens_per_step = (stage or schedule.stages[-1]).batch_size * schedule.seq_len
        b2 = 2.0 ** (-tokens_per_step / optim.b2_half_life_tokens)
        changes |= {"b2": b2, "b2_half_life_tokens": 0}
    return dataclasses.replace(optim, **changes) if changes else optim


def _decay_steps(optim: schema.Optimizer, schedule: BatchSizeSchedule, n_steps: int) -> int:
    """Return the number of last steps that contain optim.decay_tokens, at least 1."""
    last = schedule.stages[-1]
    n_decay = _round_quotient(optim.decay_tokens, last.batch_size * schedule.seq_len)
    if n_decay > n_steps - last.first_step and last.first_step:
        n_tokens = max(schedule.count_tokens(n_steps) - optim.decay_tokens, 0)
        n_decay = n_steps - schedule.find_step(n_tokens)
    return max(n_decay, 1)


def _parse_tokens(text: str) -> int:
    """Return a number of tokens such as 2000000, 2_000_000 or 2e6. Raises ConfigError."""
    try:
        n_tokens = decimal.Decimal(text.strip())
        if 0 < n_tokens <= optimizer_config.MAX_TOKENS and n_tokens % 1 == 0:
            return int(n_tokens)
    except decimal.InvalidOperation:
        pass
    problem = f"{field_names.shorten(repr(text))} must be an integer from 1 to 2^63 - 1"
    raise schema.ConfigError(f"{FIELD}: {problem}: list tokens such as '2e6,8e6'")


def _round_quotient(numerator: float, denominator: int) -> int:
    """Return a quotient, rounded. That of integers is exact, also beyond 2^53."""
    if isinstance(numerator, int):
        return (2 * numerator + denominator) // (2 * denominator)
    return round(numerator / denominator)
