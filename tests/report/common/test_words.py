"""Contract: what an interval covers and what it does not cannot be mistaken for each other."""

from ptq_eval.report.common.words import coverage_text

COVERS = {"level": 0.9, "method": "bootstrap", "n_runs": 4, "n_clusters": 9, "covers_runs": True, "n_windows": 64}


def test_what_is_not_covered_follows_all_that_is():
    assert coverage_text(COVERS | {"noise": "none"}) == (
        "90 % interval over 4 runs; covers differences between runs; "
        "not evaluation noise (no standard errors are known)"
    )
    assert coverage_text(COVERS | {"noise": "windows"}) == (
        "90 % interval over 4 runs; covers the choice of 64 evaluation windows and differences between runs"
    )
    assert coverage_text(COVERS | {"noise": "none", "covers_runs": False, "n_runs": 1}) == (
        "90 % interval from 1 run; covers the scatter of 9 checkpoints about the law; "
        "not evaluation noise (no standard errors are known) "
        "nor another training run (seed, data order): at least 3 runs are needed for that"
    )
