"""Contract: `ptq-eval fit` on tables and on records: files, words, figures, refusals with their exit codes."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ptq_eval.errors import (
    ColumnError,
    DataFileError,
    ExpressionError,
    NegativeDeltaError,
    NotFiniteError,
    NotPositiveError,
    NotVaryingError,
    OptionError,
    TextColumnError,
    TooFewPointsError,
    UnitsError,
    UnknownPluginError,
)

COLUMNS = "N=params,D=flop/(6*N),P=b,delta=q-fp,loss=fp"


@pytest.fixture(scope="module")
def frame():
    """Equation 2 with 2 % scatter on a Chinchilla law: 3 N × 4 D × 3 bits."""
    rng = np.random.default_rng(0)
    N, D, P = (
        g.ravel() for g in np.meshgrid([3e7, 6e7, 2e8], [1.5e9, 3e9, 6e9, 2.6e10], [3.0, 4.0, 6.0], indexing="ij")
    )
    fp = np.repeat((2.76 + 4299 / N**0.4965 + 18060 / D**0.4965)[::3] * (1 + 2e-4 * rng.normal(size=12)), 3)
    delta = 0.0598 * D**0.5068 / N**0.3439 * np.exp(-P / 0.5907) * (1 + 0.02 * rng.normal(size=36))
    how = np.tile(["gptq", "awq"], 18)
    return pd.DataFrame({"params": N, "flop": 6 * N * D, "b": P, "fp": fp, "q": fp + delta, "how": how})


@pytest.fixture
def tables(frame, tmp_path):
    """The same rows as CSV, Parquet and JSON lines."""
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    return SimpleNamespace(csv=tmp_path / "t.csv", parquet=tmp_path / "t.parquet", jsonl=tmp_path / "t.jsonl")


def test_every_kind_of_file_gives_the_same_constants(ptq_eval, tables):
    found = []
    for path in vars(tables).values():
        answer = ptq_eval("fit", "--data", path, "--law", "ptq", "--columns", COLUMNS, "--bootstrap", "10", "-o", "o")
        assert answer.code == 0, answer.err
        fit = json.loads(Path("o/fit.json").read_text())
        found.append({name: value["value"] for name, value in fit["fits"][0]["parameters"].items()})
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == pytest.approx(found[0], rel=1e-4)  # pandas writes JSON with ten decimals
    assert found[0]["gamma_post"] == pytest.approx(0.5907, rel=0.02)
    assert set(fit) >= {"fits", "critical_tokens", "warnings", "version"}


@pytest.mark.drawn("png")
def test_a_table_gives_a_report_and_critical_tokens(ptq_eval, tables, tmp_path):
    answer = ptq_eval("fit", "--data", tables.csv, "--law", "chinchilla,ptq", "--columns", COLUMNS, "--bootstrap", "20")
    assert answer.code == 0, answer.err
    assert "Critical tokens" in answer.out
    out = tmp_path / "work" / "t-fit"
    assert {p.name for p in out.rglob("*.*")} >= {
        "fit.json",
        "report.md",
        "fit_against_data.png",
        "fit_against_data.csv",
    }
    fit = json.loads((out / "fit.json").read_text())
    turn = fit["critical_tokens"][0]
    assert turn["predicted"]["low"] < 16.4e9 < turn["predicted"]["high"] * 1.2
    assert "lowest measured loss" in turn["verdict"]
    assert fit["fits"][1]["ranges"]["P"] == [3, 6]
    assert "figures/fit_against_data.png" in (out / "report.md").read_text()


def test_options_reach_the_fitter(ptq_eval, tables):
    options = (
        "--fixed",
        "gamma_N=0.3439",
        "--bounds",
        "gamma_D=0.1:0.9",
        "--loss",
        "log-huber",
        "--huber-delta",
        "0.01",
    )
    answer = ptq_eval(
        "fit", "--data", tables.csv, "--law", "ptq", "--columns", COLUMNS, *options, "--by", "how", "-o", "o"
    )
    assert answer.code == 0, answer.err
    fits = json.loads(Path("o/fit.json").read_text())["fits"]
    assert [entry["group"] for entry in fits] == [{"how": "gptq"}, {"how": "awq"}]
    assert all(entry["parameters"]["gamma_N"]["value"] == 0.3439 for entry in fits)
    assert {(entry["loss"], entry["huber_delta"]) for entry in fits} == {("log-huber", 0.01)}


def test_one_fit_per_bit_width_holds_what_bits_do(ptq_eval, tables):
    answer = ptq_eval("fit", "--data", tables.csv, "--law", "ptq", "--columns", COLUMNS, "--by", "b", "-o", "o")
    assert answer.code == 0, answer.err
    fits = json.loads(Path("o/fit.json").read_text())["fits"]
    assert [entry["group"]["b"] for entry in fits] == ["3", "4", "6"]
    assert all(entry["parameters"]["gamma_post"]["value"] == 1.0 for entry in fits)


@pytest.mark.parametrize(
    ("change", "arguments", "error", "said"),
    [
        ({}, ["--columns", "N=parms"], ColumnError, "did you mean 'params'?"),
        ({}, ["--law", "chen"], ColumnError, "chen needs G"),
        ({}, ["--columns", "N=params+"], ExpressionError, "not an expression"),
        ({"params": "big"}, [], TextColumnError, "N = params holds text"),
        ({"params": np.nan}, [], NotFiniteError, "N = params is blank"),
        ({"params": 0.0}, [], NotPositiveError, "N = params is zero or negative"),
        ({"params": -1e9}, [], NotPositiveError, "zero or negative"),
        ({"params": 0.03}, [], UnitsError, "did you mean N=1e9*params?"),
        ({}, ["--where", "params < 4e7 and b < 4 and flop < 3e17"], TooFewPointsError, "1 point"),
        ({}, ["--where", "params < 4e7"], NotVaryingError, "1 distinct value of N"),
        ({}, ["--where", "b == 4"], NotVaryingError, "1 distinct value of P"),
        ({"q": 0.0}, [], NegativeDeltaError, "0 of 36 deltas above zero"),
        ({}, ["--law", "kumarr"], UnknownPluginError, "did you mean 'kumar'"),
        ({}, ["--fixed", "gamma_X=1"], OptionError, "no constant of this name"),
        ({}, ["--fixed", "gamma_N"], OptionError, "--fixed is not a pair"),
        ({}, ["--law-option", "offsets=false"], OptionError, "no option 'offsets'"),
    ],
)
def test_bad_data_are_refused_in_one_line(ptq_eval, frame, tmp_path, change, arguments, error, said):
    frame.assign(**change).to_csv(tmp_path / "bad.csv", index=False)
    law = [] if "--law" in arguments else ["--law", "ptq"]
    given = dict(pair.split("=") for pair in COLUMNS.split(","))
    if "--columns" in arguments:
        given |= dict(pair.split("=") for pair in [arguments[arguments.index("--columns") + 1]])
        arguments = [part for part in arguments if part != "--columns" and "=par" not in part]
    columns = ",".join(f"{name}={text}" for name, text in given.items())
    answer = ptq_eval("fit", "--data", tmp_path / "bad.csv", *law, "--columns", columns, *arguments)
    answer.refuses(error.exit_code, said)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "there is no such data file"),
        ("table.xlsx", "a,b", "allowed: .csv, .tsv, .parquet, .json, .jsonl"),
        ("empty.csv", "a,b\n", "without rows"),
        ("nothing.csv", "", "without rows"),
        ("torn.parquet", "PAR1", "cannot be read as parquet"),
        ("torn.jsonl", '{"a": 1}\n{"a"', "cannot be read as jsonl"),
    ],
)
def test_files_that_cannot_be_read(ptq_eval, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    ptq_eval("fit", "--data", tmp_path / name, "--law", "ptq").refuses(DataFileError.exit_code, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a folder with records, or --data FILE, a table"),
        (["out", "--data", "t.csv"], "not both"),
        (["--data", "t.csv"], "needs a law"),
        (["out", "--law", "ptq"], "--law: only with --data"),
        (["out", "--loss", "lad"], "--loss: only with --data"),
        (["out", "--laws", "kumar", "--fixed", "gamma_N=1"], "--fixed: for a fit of one law"),
    ],
)
def test_options_that_do_not_go_together(ptq_eval, arguments, said):
    ptq_eval("fit", *arguments).refuses(OptionError.exit_code, said)


@pytest.mark.drawn("png")
def test_laws_are_compared_on_a_table(ptq_eval, tables, tmp_path):
    laws = ("--laws", "kumar,ouyang,chinchilla,chen", "--test", "gamma_D=gamma_N", "--bootstrap", "40")
    answer = ptq_eval("fit", "--data", tables.csv, "--columns", COLUMNS, *laws, "-o", "c")
    assert answer.code == 0, answer.err
    out = tmp_path / "work" / "c"
    found = json.loads((out / "comparison.json").read_text())
    delta, loss = found["comparisons"]
    assert (delta["response"], loss["response"]) == ("delta", "loss")
    assert [law["name"] for law in delta["laws"]] == ["kumar", "ouyang"]
    assert delta["excluded"]["chen"]["variable"] == "G"
    assert "significantly better than ouyang" in answer.out.replace("\n", " ")
    assert "no learning rates" in found["phase"][0]["verdict"]
    assert found["tests"][0]["verdict"].startswith("gamma_D and gamma_N differ")
    assert loss["n_points"] == 12  # once per checkpoint, not once per bit-width
    assert delta["verdict"][1:] in (out / "comparison.md").read_text()
    drawn = pd.read_csv(out / "figures" / "comparison.csv")
    assert set(drawn["law"]) == {"kumar", "ouyang", "chinchilla"}
    assert (out / "figures" / "comparison.png").stat().st_size > 5000


def test_laws_of_the_loss_need_no_delta(ptq_eval, frame, tmp_path):
    frame[["params", "flop", "fp"]].drop_duplicates().to_csv(tmp_path / "loss.csv", index=False)
    more = ("--laws", "chinchilla,chinchilla_d", "--test", "alpha=beta", "--bootstrap", "20", "-o", "c")
    answer = ptq_eval("fit", "--data", tmp_path / "loss.csv", "--columns", "N=params,D=flop/(6*N),loss=fp", *more)
    assert answer.code == 0, answer.err
    found = json.loads(Path("c/comparison.json").read_text())
    assert [law["name"] for law in found["comparisons"][0]["laws"]] == ["chinchilla", "chinchilla_d"]
    assert found["comparisons"][0]["laws"][1]["ignored"] == ["N"]
    assert found["phase"] == []
    assert found["tests"][0]["law"] == "chinchilla"


def test_laws_are_compared_on_records(ptq_eval, out):
    """Three checkpoints of an untrained model: nothing can be concluded, and the report says so."""
    answer = ptq_eval("fit", out, "--laws", "kumar,ouyang", "--bootstrap", "10")
    assert answer.code == 0, answer.err
    found = json.loads((out / "comparison.json").read_text())
    assert [one["label"] for one in found["comparisons"]] == ["rtn"]
    assert found["comparisons"][0]["n_points"] == 6
    assert found["phase"][0]["tested"] is False
    page = (out / "report.md").read_text()
    assert found["comparisons"][0]["verdict"][1:] in page.split("## Laws compared\n")[1].split("\n## ")[0]
    assert "Out of date" not in page
    assert ptq_eval("report", out, "--bootstrap", "10").code == 0
    assert found["comparisons"][0]["verdict"][1:] in (out / "report.md").read_text()


def test_records_are_fitted_per_bit_width_beside_the_usual_fit(ptq_eval, out):
    before = (out / "fit.json").read_bytes()
    answer = ptq_eval("fit", out, "--by", "bits", "--bootstrap", "10")
    assert answer.code == 0, answer.err
    fit = json.loads((out / "fit-by-bits.json").read_text())
    assert [entry.get("group") for entry in fit["fits"] if entry["quantizer"] == "rtn"] == [
        {"bits": "3"},
        {"bits": "4"},
    ]
    assert (out / "fit.json").read_bytes() == before
    ptq_eval("fit", out, "--by", "bitz").refuses(ColumnError.exit_code, "did you mean 'bits'?")


def test_one_column_of_bits_fits_the_law_of_trained_precision(ptq_eval, tmp_path):
    rng = np.random.default_rng(0)
    grid = ([3e7, 6e7, 2e8], [1.5e9, 6e9, 2.6e10], [3.0, 4.0, 6.0, 8.0])
    N, D, b = (g.ravel() for g in np.meshgrid(*grid, indexing="ij"))
    loss = 2.76 + 4299 / (N * -np.expm1(-b / 2.67)) ** 0.4965 + 18060 / D**0.4965
    frame = pd.DataFrame({"N": N, "D": D, "loss": loss * (1 + 1e-4 * rng.normal(size=36)), "bits": b})
    frame.to_csv(tmp_path / "trained.csv", index=False)
    options = ("--law", "n_eff", "--law-option", "offsets=false", "--bootstrap", "10", "-o", "o")
    answer = ptq_eval("fit", "--data", tmp_path / "trained.csv", *options)
    assert answer.code == 0, answer.err
    entry = json.loads(Path("o/fit.json").read_text())["fits"][0]
    assert entry["parameters"]["gamma_w"]["value"] == pytest.approx(2.67, rel=0.05)
