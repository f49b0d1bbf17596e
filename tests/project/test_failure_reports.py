"""Reports of failed tests by pytest."""

import ast
import gc

import conftest


class Cycle:
    """An object that only the collector of garbage deletes. Its finalizer parses a source."""

    def __init__(self):
        self.reference = self

    def __del__(self):
        ast.parse("a = 1")


def test_finalizers_do_not_disturb_the_report_of_a_failure():
    text = "x = [1, 2, 3]\n" * 200
    thresholds = gc.get_threshold()
    gc.enable()  # tests of this folder run without collections
    report = conftest.pytest_runtest_makereport()
    next(report)
    gc.set_threshold(100)
    try:
        cycles = [Cycle() for _ in range(3)]
        del cycles
        assert len(ast.parse(text).body) == 200
    finally:
        gc.set_threshold(*thresholds)
        report.close()
    assert gc.isenabled()
