"""Committed learning curves: faulty runs are flagged, healthy runs are not."""

import pathlib

import lm
from experiments.benchmarks import learning_curves
from lm.laws.learning_curves import departures

RECORDS = pathlib.Path(__file__).parent.parent.parent / "notebooks" / "data" / "curves"


def test_records_are_small_and_complete():
    curves = lm.laws.load_curves(RECORDS / learning_curves.FINISHED_FILE)
    assert len(curves) == 36 and all(curve.is_finished for curve in curves)
    assert len({curve.batch_key for curve in curves}) == 1
    assert sum(file.stat().st_size for file in RECORDS.iterdir()) < 500_000


def test_faults_are_flagged_at_a_fifth_of_the_steps():
    curves = lm.laws.load_curves(RECORDS / learning_curves.FINISHED_FILE)
    faulty = learning_curves.simulate_faults(curves)
    trained = lm.laws.load_curves(RECORDS / learning_curves.FAULTY_FILE)
    assert len(faulty) == 72
    n_flagged = {"healthy": 0, "faulty": 0, "trained": 0}
    for kind, group in (("healthy", curves), ("faulty", faulty), ("trained", trained)):
        for curve in group:
            others = [other for other in curves if other.name != curve.name.rpartition(":")[2]]
            check = departures.check_run(others, curve.until(0.2 * curve.n_steps))
            n_flagged[kind] += check.is_flagged
    assert n_flagged["healthy"] <= 2 and n_flagged["faulty"] >= 69
    assert n_flagged["trained"] >= 0.8 * len(trained)


def test_tables_have_errors_and_coverage(capsys):
    curves = lm.laws.load_curves(RECORDS / learning_curves.FINISHED_FILE)
    learning_curves.print_flags(curves[:12], [])
    text = capsys.readouterr().out
    assert "healthy" in text and "all faults" in text and "[" in text
