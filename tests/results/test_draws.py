"""Contract and oracle: several draws of the calibration windows are one row, whose error holds their spread."""

import math

import numpy as np
import pytest

import ptq_eval
from ptq_eval.config import RunConfig
from ptq_eval.errors import OptionError
from ptq_eval.results.store import Store
from ptq_eval.sampling import freedom

CELL = ["step", "quantizer", "bits"]


@pytest.fixture(scope="module")
def grown(trajectory, small, tmp_path_factory):
    """One folder with one draw, then with three; its records and tables after each."""
    out = tmp_path_factory.mktemp("draws")
    options = {**small, "quantizers": ("rtn", "awq"), "bits": (3,)}
    one = ptq_eval.run(trajectory, out, **options).table
    first = {m.trial.key(): m.nll for m in Store(out).measurements()}
    three = ptq_eval.run(trajectory, out, **options, calib_repeats=3).table
    return one, first, three, list(Store(out).measurements())


def test_a_folder_grows_and_the_first_draw_stays(grown):
    one, first, three, stored = grown
    now = {m.trial.key(): m.nll for m in stored}
    assert len(now) == len(stored)
    assert {key: now[key] for key in first} == first
    assert len(now) - len(first) == 2 * len(one[one["quantizer"] == "awq"])
    assert one[CELL].equals(three[CELL])
    drawn = three["quantizer"] == "awq"
    assert (three.loc[drawn, "calibration_draws"] == 3).all()
    assert three.loc[~drawn, "calibration_draws"].isna().all()
    assert (one.loc[drawn, "calibration_draws"] == 1).all()
    assert one.loc[drawn, "calibration_sd"].isna().all()


def test_delta_and_its_error_are_those_of_the_formula(grown):
    *_, three, stored = grown
    for row in three[three["quantizer"] == "awq"].to_dict("records"):
        own = [m for m in stored if m.trial.checkpoint.step == row["step"]]
        (full,) = [m for m in own if m.trial.scheme is None]
        per_token = [
            [(a - b) / n for a, b, n in zip(m.nll, full.nll, m.n_tokens)] for m in own if m.trial.quantizer == "awq"
        ]
        deltas = [math.fsum(values) / len(values) for values in per_token]
        mean = math.fsum(deltas) / 3
        variance = math.fsum((delta - mean) ** 2 for delta in deltas) / 2
        assert row["delta"] == pytest.approx(mean, rel=1e-9)
        assert row["calibration_sd"] == pytest.approx(math.sqrt(variance), rel=1e-9)
        assert variance > 0
        sampling = row["delta_se"] ** 2 - variance / 3
        total, df = row["delta_se"] ** 2, row["delta_df"]
        windows = np.mean(per_token, axis=0)
        pairs = [windows[i : i + 2] for i in range(0, len(windows), 2)]
        sample = full.trial.sample
        share = len(windows) / sample.population
        assert sample.selection == "spread"
        assert len(windows) % 2 == 0
        expected = (1 - share) * sum((a - b) ** 2 for a, b in pairs) / len(windows) ** 2
        assert sampling == pytest.approx(expected, rel=1e-6)
        assert df == pytest.approx(total**2 / (sampling**2 / len(pairs) + (variance / 3) ** 2 / 2), rel=1e-6)


def test_degrees_of_freedom_of_equal_variances_add_up():
    assert freedom((1.0, 1.0), (5, 5)) == pytest.approx(10)
    assert freedom((1.0, 0.0), (7, 2)) == pytest.approx(7)


def test_repeats_of_the_first_windows_are_refused():
    with pytest.raises(OptionError, match="calib-repeats"):
        RunConfig(calib_repeats=2, calib_sample="first")
