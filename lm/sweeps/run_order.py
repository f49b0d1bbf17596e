"""Order of the runs of a sweep: parents before children, the predicted run last.

run_order.topological_order(runs)
run_order.max_parallel_runs(runs)       # more processes would wait
"""

import collections

from lm.config import schema
from lm.sweeps import prediction


def topological_order(runs: list[schema.Run]) -> list[schema.Run]:
    """Return the runs with each parent run before its children.

    The predicted run and its related runs come last. Raises ValueError for circular parents.
    """
    by_name = {run.name: run for run in runs}
    related = prediction.related_runs(runs)
    ordered_runs: dict[str, schema.Run] = {}
    for run in sorted(runs, key=lambda run: run.name in related):
        for ancestor in _ancestors(run, by_name):
            ordered_runs.setdefault(ancestor.name, ancestor)
    return list(ordered_runs.values())


def max_parallel_runs(runs: list[schema.Run]) -> int:
    """Return the number of runs that can be in training at the same time.

    A run and its parent cannot, so runs with a child among `runs` do not count. The predicted run
    and its related runs wait until the other runs have ended.
    """
    parents, related = {run.start.run for run in runs}, prediction.related_runs(runs)
    counts = collections.Counter(run.name in related for run in runs if run.name not in parents)
    return max(counts.values(), default=0)


def _ancestors(run: schema.Run, by_name: dict[str, schema.Run]) -> list[schema.Run]:
    """Return the run and its ancestors in the sweep, oldest first.

    Raises ValueError if a run is its own ancestor.
    """
    ancestors = [run]
    while ancestors[-1].start.run in by_name:
        parent = by_name[ancestors[-1].start.run]
        names = [descendant.name for descendant in ancestors]
        if parent.name in names:
            circle = " <- ".join((*names[names.index(parent.name) :], parent.name))
            raise ValueError(
                f"start.run={parent.start.run!r} makes a circle: {circle}. Start one of these runs"
                " without a parent run."
            )
        ancestors.append(parent)
    return ancestors[::-1]
