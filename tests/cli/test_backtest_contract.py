"""Contract: `ptq-eval backtest`: what it writes and prints, and that too few checkpoints are one line."""

import json

import numpy as np
import pandas as pd
import pytest

from ptq_eval import errors
from ptq_eval.jobs.run import load, save_report
from ptq_eval.records import Checkpoint, Measurement, Scheme, Trial
from ptq_eval.report import renew_page
from ptq_eval.results.load import load as load_results
from ptq_eval.results.store import Store

N, WINDOWS = 100_000, 24
TOKENS = [int(N * 5 * 1.8**k) for k in range(9)]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """An output folder of one run with nine checkpoints, whose loss at 2 bits turns and at 4 bits falls."""
    rng, store = np.random.default_rng(0), Store(tmp_path_factory.mktemp("simulated"))
    difficulty, checkpoints = rng.normal(0, 0.2, WINDOWS), []
    with store.writer() as writer:
        for step, D in enumerate(TOKENS):
            checkpoint = Checkpoint(run="series/one", step=step, tokens=D, params=N, weights_sha=f"{step}")
            checkpoints.append(checkpoint)
            before = 2.5 + 150 * D**-0.35 + difficulty + rng.normal(0, 0.002)
            writer.append(_measured(Trial(checkpoint, "text", "protocol"), before))
            for bits, factor in ((2, 0.02), (4, 0.001)):
                delta = factor * (D / N) ** 0.8 * (1 + rng.normal(0, 0.03)) + rng.normal(0, 0.0005, WINDOWS)
                trial = Trial(checkpoint, "text", "protocol", "rtn", "1", scheme=Scheme(bits, 16))
                writer.append(_measured(trial, before + delta))
    blank = {key: {} for key in ("fixed", "quantizer_options", "digests")}
    store.write_run({**blank, "checkpoints": [c.to_dict() for c in checkpoints]})
    return store.folder


def _measured(trial, losses):
    quantized = {} if trial.scheme is None else {"kl": (0.1,) * WINDOWS, "agree": (5,) * WINDOWS}
    return Measurement(trial, nll=tuple(7 * losses), n_tokens=(7,) * WINDOWS, **quantized)


def test_a_backtest_is_a_record_a_page_and_a_figure(ptq_eval, simulated):
    answer = ptq_eval("backtest", simulated, "--level", "0.8", "--horizon", "4")
    assert (answer.code, answer.err) == (0, "")
    record = json.loads((simulated / "backtest.json").read_text())
    assert (record["level"], record["min_checkpoints"], record["horizon"]) == (0.8, 8, 4)
    rows = record["statements"]
    wanted = "run quantizer bits origin_tokens what target_tokens low value high level truth refuted method"
    assert set(wanted.split()) <= set(rows[0])
    assert {row["what"] for row in rows} == {"loss_q", "delta", "critical_tokens"}
    assert {row["method"] for row in rows} == {"forecast", "staying", "joint", "power"}
    assert {row["origin_tokens"] for row in rows} == set(TOKENS[3:-1])
    turned = {row["bits"]: row["truth"] for row in rows if row["what"] == "critical_tokens"}
    assert turned[4] is None
    assert TOKENS[0] < turned[2] < TOKENS[-1]
    assert record["summary"]
    page = (simulated / "backtest.md").read_text()
    for words in ("80 %", "Had you asked then", "figures/fan_series-one.png"):
        assert words in page
    assert "not before" in answer.out
    assert "Written to" in answer.out


def test_the_figure_shows_the_measurements_and_bands_in_order(ptq_eval, simulated):
    assert ptq_eval("backtest", simulated).code == 0
    names = {path.name for path in (simulated / "figures").iterdir()}
    assert names == {f"fan_series-one.{kind}" for kind in ("png", "pdf", "csv")}
    drawn = pd.read_csv(simulated / "figures" / "fan_series-one.csv")
    known, later = (drawn[(drawn["kind"] == kind) & (drawn["bits"] == 2)] for kind in ("known", "later"))
    assert sorted([*known["tokens"], *later["tokens"]]) == TOKENS
    assert known["tokens"].max() / N == pytest.approx(52.5, rel=0.01)  # the checkpoint nearest D/N = 50
    band = drawn[drawn["kind"] == "band"]
    assert (band["tokens"] > known["tokens"].max()).all()
    ends = band[["low_90", "low_50", "loss", "high_50", "high_90"]].to_numpy()
    assert (np.diff(ends, axis=1) >= 0).all()


@pytest.mark.slow
def test_another_run_of_the_command_gives_the_same_files(ptq_eval, simulated):
    files = []
    for _ in range(2):
        assert ptq_eval("backtest", simulated).code == 0
        files.append([p.read_bytes() for p in sorted(simulated.rglob("*")) if p.name.startswith(("backtest", "fan_"))])
    assert len(files[0]) == 5
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("--min-checkpoints", "10"), errors.NothingToFitError, "at most 9 of one run"),
        (("--min-checkpoints", "4"), errors.OptionError, "--min-checkpoints"),
        (("--level", "1"), errors.OptionError, "--level"),
        (("--horizon", "1"), errors.OptionError, "--horizon"),
    ],
)
def test_what_cannot_be_done_is_one_line(ptq_eval, simulated, arguments, error, words):
    ptq_eval("backtest", simulated, *arguments).refuses(error.exit_code, words)


def test_a_folder_without_results_is_one_line(ptq_eval, tmp_path):
    ptq_eval("backtest", tmp_path / "nowhere").refuses(errors.NothingToFitError.exit_code, "nowhere")


@pytest.mark.slow
def test_the_report_shows_the_backtest_of_its_own_measurements(ptq_eval, simulated):
    report, record, result = simulated / "report.md", simulated / "backtest.json", load(simulated, bootstrap=10)
    record.unlink(missing_ok=True)
    save_report(simulated, result)
    assert "\n`ptq-eval backtest OUT` asks at every checkpoint" in report.read_text()
    assert ptq_eval("backtest", simulated, "--horizon", "4").code == 0
    added = report.read_text()
    assert added.count("## Had you asked earlier") == 1
    assert "figures/asked_series-one.png" in added
    assert "joint law (Kumar et al.)" in added
    fit = json.loads((simulated / "fit.json").read_text())
    (simulated / "fit.json").write_text(json.dumps({**fit, "records": "others"}))
    report.write_text("of another fit")
    results = load_results(simulated)
    assert renew_page(results) == []
    (simulated / "fit.json").write_text(json.dumps(fit))
    assert renew_page(results) == [report, report.with_suffix(".html")]
    assert report.read_text() == added
    record.write_text(record.read_text().replace(json.loads(record.read_text())["records"], "other"))
    renew_page(results)
    assert "Out of date: the backtest" in report.read_text()
    record.write_text(json.dumps({**json.loads(record.read_text()), "version": 1}))
    renew_page(results)
    assert "Out of date: another version" in report.read_text()
    record.write_text("{")
    with pytest.raises(errors.OutputMismatchError, match="damaged"):
        renew_page(results)
