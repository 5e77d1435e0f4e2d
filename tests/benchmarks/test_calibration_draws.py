"""Oracle: of an error that several calibration draws make, the part that the windows explain is known beforehand."""

import numpy as np
import pytest

from benchmarks import calibration_draws as subject


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.0, 0.02, 1.0])
def test_the_error_of_sampling_does_not_depend_on_the_draws(between):
    rng = np.random.default_rng(0)
    draws, windows = 8, 400
    of_windows = 0.1 * rng.normal(size=windows)
    cells = [
        subject.Cell(
            "run@1",
            "gptq",
            bits,
            1 + between * rng.normal(size=(draws, 1)) + of_windows,
            np.full((draws, windows), 0.3),
        )
        for bits in (2, 3, 4, 8)
    ]
    column = subject.COLUMNS.index("sampling se")
    expected = 0.1 / np.sqrt(windows // 4) * np.sqrt(1 - 1 / 4)  # a quarter of the windows are measured
    for row in subject.judged(cells, 2):
        assert row[column] == pytest.approx(expected, rel=0.15)


def test_each_bit_width_has_the_range_of_its_cells():
    rows = [[2, 0.8], [2, 0.9], [3, 0.95]]
    found = list(subject.by_width("share", rows, 0, 1))
    assert [(round(c.value, 3), c.low, c.high, c.limit) for c in found] == [
        (0.85, 0.8, 0.9, None),
        (0.95, 0.95, 0.95, None),
    ]
