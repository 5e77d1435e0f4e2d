"""Contract: what `ptq-eval fit --data` writes: legible figures, replicates, residuals, intervals."""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from ptq_eval import fit_data
from ptq_eval.errors import NotPositiveError, OptionError, TooFewPointsError
from ptq_eval.report.common import figures
from ptq_eval.report.table_fit import figure as data_figure

BITS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)


@pytest.fixture(scope="module")
def frame():
    """Equation 2 with 2 % scatter on a Chinchilla law: 3 N × 4 D × 9 bits."""
    rng = np.random.default_rng(0)
    grid = np.meshgrid([3e7, 6e7, 2e8], [1.5e9, 3e9, 6e9, 2.6e10], BITS, indexing="ij")
    N, D, P = (values.ravel() for values in grid)
    loss = np.repeat((2.76 + 4299 / N**0.4965 + 18060 / D**0.4965)[:: len(BITS)] * (1 + 2e-4 * rng.normal(size=12)), 9)
    delta = 0.0598 * D**0.5068 / N**0.3439 * np.exp(-P / 0.5907) * (1 + 0.02 * rng.normal(size=len(N)))
    return pd.DataFrame({"params": N, "tokens": D, "bits": P, "loss": loss, "delta": delta})


@pytest.fixture
def path(frame, tmp_path):
    frame.to_csv(tmp_path / "good.csv", index=False)
    return tmp_path / "good.csv"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("n_fits", "rows"), [(1, 1), (2, 2), (4, 4), pytest.param(9, 8, marks=pytest.mark.slow)])
def test_every_fit_has_a_row_of_panels_of_full_size(frame, n_fits, rows):
    where = f"bits < {BITS[n_fits - 1] + 0.5}"
    found = fit_data(frame, "ptq", by="bits", where=where, bootstrap=0)
    with matplotlib.rc_context(figures._STYLE):
        figure = data_figure.draw(data_figure.data(found))
        figure.draw_without_rendering()
    sizes = [ax.get_position().size * figure.get_size_inches() for ax in figure.axes]
    assert len(sizes) == 3 * rows
    assert np.min(sizes) > 1.3  # inches
    assert figure.get_figheight() > 2 * rows


@pytest.mark.drawn("png")
def test_fits_of_several_laws_have_rows_too(ptq_eval, path):
    answer = ptq_eval("fit", "--data", path, "--law", "chinchilla,ptq", "--bootstrap", "10", "-o", "o")
    assert answer.code == 0, answer.err
    assert "constrained_layout" not in answer.err


@pytest.mark.slow
def test_replicates_are_written_in_the_order_of_the_constants(ptq_eval, path):
    answer = ptq_eval("fit", "--data", path, "--law", "chinchilla,ptq", "--bootstrap", "30", "-o", "o")
    assert answer.code == 0, answer.err
    fits = json.loads(Path("o/fit.json").read_text())["fits"]
    arrays = np.load("o/replicates.npz")
    assert sorted(arrays) == ["0", "1"]
    for place, entry in enumerate(fits):
        draws = arrays[str(place)]
        assert draws.shape == (30, len(entry["parameters"]))
        for column, (name, constant) in zip(draws.T, entry["parameters"].items()):
            assert column.min() <= constant["value"] <= column.max(), name
            assert constant["low"] <= np.median(column) <= constant["high"], name
    again = Path("o/replicates.npz").read_bytes()
    ptq_eval("fit", "--data", path, "--law", "chinchilla,ptq", "--bootstrap", "30", "-o", "o")
    assert Path("o/replicates.npz").read_bytes() == again


def test_a_held_constant_has_its_column_and_its_mark(ptq_eval, path):
    options = ("--by", "bits", "--where", "bits < 4", "--fixed", "gamma_N=0.34", "--bootstrap", "10", "-o", "o")
    answer = ptq_eval("fit", "--data", path, "--law", "ptq", *options)
    assert answer.code == 0, answer.err
    entry = json.loads(Path("o/fit.json").read_text())["fits"][0]
    assert entry["held"] == ["gamma_post", "gamma_N"]
    assert "gamma_post = 1 (held)" in answer.out
    assert "gamma_N = 0.34 (held)" in Path("o/report.md").read_text()
    draws = np.load("o/replicates.npz")["0"]
    assert set(draws[:, list(entry["parameters"]).index("gamma_post")]) == {1.0}


def test_a_law_of_delta_alone_says_once_what_critical_tokens_take(ptq_eval, path):
    answer = ptq_eval("fit", "--data", path, "--law", "ptq", "--bootstrap", "10", "-o", "o")
    assert answer.code == 0, answer.err
    assert "Critical tokens" not in answer.out
    fit = json.loads(Path("o/fit.json").read_text())
    assert fit["critical_tokens"] == []
    assert [text for text in fit["warnings"] if "critical" in text] == [
        "kumar_ptq alone gives no critical number of tokens: fit a law of the loss beside it, as in "
        "--law chinchilla,kumar_ptq"
    ]


def test_profile_intervals_have_no_replicates_and_say_what_they_are(ptq_eval, path):
    answer = ptq_eval("fit", "--data", path, "--law", "ptq", "--intervals", "profile", "-o", "o")
    assert answer.code == 0, answer.err
    entry = json.loads(Path("o/fit.json").read_text())["fits"][0]
    assert "profile likelihood" in entry["interval"]
    assert entry["parameters"]["gamma_D"]["low"] < 0.5068 < entry["parameters"]["gamma_D"]["high"]
    assert np.load("o/replicates.npz")["0"].shape == (0, 4)
    ptq_eval("fit", "--data", path, "--laws", "ptq", "--intervals", "profile").refuses(
        OptionError.exit_code, "--intervals: for a fit of one law"
    )


def test_the_table_of_the_figure_has_residuals_and_leverage(frame, tmp_path):
    found = fit_data(frame, "ptq", bootstrap=0, intervals="none")
    found.write(tmp_path)
    table = pd.read_csv(tmp_path / "figures" / "fit_against_data.csv")
    assert table["residual"].to_numpy() == pytest.approx(table["measured"] - table["fitted"])
    assert table["leverage"].sum() == pytest.approx(4)  # its sum is the number of constants
    assert table["leverage"].between(0, 1).all()
    assert table["standard_residual"].abs().median() < 2


def test_a_threshold_without_huber_is_refused(ptq_eval, path):
    answer = ptq_eval("fit", "--data", path, "--law", "ptq", "--loss", "squared", "--huber-delta", "1")
    answer.refuses(OptionError.exit_code, "no huber_delta")


def test_a_law_of_several_trained_parts_takes_the_one_that_is_given(ptq_eval, frame, tmp_path):
    rng = np.random.default_rng(1)
    served, trained = frame.bits, np.resize([6.0, 8.0, 12.0], len(frame)) + frame.bits
    left = -np.expm1(-0.5 * (trained - served))
    capacity = frame.params * -np.expm1(-trained / 2.67)
    loss = 2.76 + 4299 / capacity**0.4965 + 18060 / frame.tokens**0.4965
    loss += 0.0598 * frame.tokens**0.5068 / capacity**0.3439 * np.exp(-served / 0.5907) * left
    table = frame.assign(loss=loss * (1 + 1e-4 * rng.normal(size=len(frame))), trained=trained)
    table.drop(columns="delta").to_csv(tmp_path / "u.csv", index=False)
    options = ("--columns", "P_w=trained", "--law-option", "offsets=false", "--bootstrap", "10", "-o", "o")
    answer = ptq_eval("fit", "--data", tmp_path / "u.csv", "--law", "unified", *options)
    assert answer.code == 0, answer.err
    assert set(json.loads(Path("o/fit.json").read_text())["fits"][0]["ranges"]) == {"N", "D", "P", "P_w", "loss"}


def test_a_comparison_of_nothing_is_refused_with_the_code_of_a_fit(ptq_eval, tmp_path):
    table = pd.DataFrame({"N": [1e8], "D": [1e9], "bits": [4], "delta": [0.1]})
    table.to_csv(tmp_path / "one.csv", index=False)
    alone = ptq_eval("fit", "--data", tmp_path / "one.csv", "--law", "kumar")
    alone.refuses(TooFewPointsError.exit_code, "too few points for 4 constants")
    compared = ptq_eval("fit", "--data", tmp_path / "one.csv", "--laws", "kumar,ouyang")
    compared.refuses(TooFewPointsError.exit_code, "too few points for 4 constants")


def test_a_negative_standard_error_is_refused_before_anything_is_written(ptq_eval, tmp_path):
    N, D, P = (g.ravel() for g in np.meshgrid([3e7, 6e7, 1e8], [1e9, 4e9, 16e9], [3.0, 4.0], indexing="ij"))
    table = pd.DataFrame({"N": N, "D": D, "P": P, "delta": 1e-3 * D**0.3 * np.exp(-P), "se": -0.1})
    table.to_csv(tmp_path / "t.csv", index=False)
    for law in ("--law", "--laws"):
        answer = ptq_eval("fit", "--data", tmp_path / "t.csv", law, "kumar", "-o", "o")
        answer.refuses(NotPositiveError.exit_code, "se is zero or negative | got -0.1 in row 1")
    assert not Path("o").exists()
