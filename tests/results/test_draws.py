"""Contract and oracle: several draws of the calibration windows are one row, whose error holds their spread."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import ptq_eval
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OptionError
from ptq_eval.results.draws import add_calibration, shrunk
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


@pytest.mark.slow
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


def test_variances_are_shrunk_towards_a_common_multiple_of_their_scales():
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(size=40))
    alike, df = shrunk(2.0 * scales * rng.chisquare(1, 40), 1, scales)
    assert df == pytest.approx(np.full(40, 41.0))
    assert alike == pytest.approx(2.0 * scales, rel=0.6)
    unlike = scales * np.exp(6 * rng.normal(size=40))
    kept, df = shrunk(unlike, 1, scales)
    large = unlike / scales > 1
    assert kept[large] == pytest.approx(unlike[large], rel=0.5)
    assert (df < 1.5).all()


@given(st.integers(0, 10_000), st.integers(4, 30), st.integers(1, 5), st.floats(0, 3))
def test_a_shrunk_variance_is_between_its_own_and_the_common_one(seed, cells, df, spread):
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=cells))
    own = scales * np.exp(spread * rng.normal(size=cells)) * rng.chisquare(df, cells) / df
    found, freedoms = shrunk(own, df, scales)
    ratio, shifted = own / scales, found / scales
    assert np.all(np.diff(shifted[np.argsort(ratio)]) >= -1e-9 * shifted.max())
    assert np.all((freedoms >= df) & (freedoms <= df * (1 + cells)))
    assert shrunk(9 * own, df, scales)[0] == pytest.approx(9 * found)
    assert shrunk(own, df, 9 * scales)[0] == pytest.approx(found)


def test_what_has_no_scale_or_too_few_beside_it_keeps_its_own_variance():
    own, scales = np.array([1.0, 2.0, 3.0, 4.0, 0.0, 5.0]), np.array([1.0, 1.0, 1.0, 1.0, 1.0, np.nan])
    found, df = shrunk(own, 2, scales)
    assert (found[4:] == own[4:]).all()
    assert (df[4:] == 2).all()
    assert (df[:4] > 2).all()
    alone, df = shrunk(own[:3], 2, scales[:3])
    assert (alone == own[:3]).all()
    assert (df == 2).all()


@pytest.mark.slow
def test_recovery_intervals_of_two_draws_cover_the_mean_of_all():
    """Sixteen cells whose spread over draws is the root of their divergence times e^±0.4; the sampling error is 1."""
    rng, inside, widths = np.random.default_rng(0), [], []
    for _ in range(400):
        scales = np.exp(rng.normal(0, 1, 16))
        sd = scales * np.exp(0.4 * rng.normal(size=16))
        deltas = rng.normal(0, 1, 16)[:, None] + sd[:, None] * rng.standard_normal((16, 2))
        rows = [
            {"delta": d.mean(), "delta_se": 1.0, "loss_q_se": 1.0, "delta_df": 100, "calibration_draws": 2,
             "calibration_sd": d.std(ddof=1), "kl": scale**2}
            for d, scale in zip(deltas, scales)
        ]  # fmt: skip
        add_calibration(rows)
        reach = [row["delta_se"] * stats.t.ppf(0.95, row["delta_df"]) for row in rows]
        inside += [abs(row["delta"]) <= r for row, r in zip(rows, reach)]
        widths += [r / math.hypot(1, s / math.sqrt(2)) for r, s in zip(reach, sd)]
    assert 0.86 <= np.mean(inside) <= 0.93
    assert np.median(widths) < 1.9
