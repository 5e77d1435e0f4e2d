"""Contract: `ptq-eval arena`: files, words, what is not identified, and refusals in one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ptq_eval.errors import (
    ColumnError,
    DataFileError,
    ExpressionError,
    NothingToFitError,
    OptionError,
    TextColumnError,
    UnknownPluginError,
)
from ptq_eval.jobs.arena import _repeats
from ptq_eval.laws.catalogue import make_law
from ptq_eval.laws.simulate import grid, simulate
from tests.laws.synthetic import KUMAR

FEW = ("--laws", "ratio,kumar,chen,chinchilla_d")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def frame():
    """Three sizes, five D, three bit-widths, two quantizers, and a row without delta for each checkpoint."""
    frames = []
    for place, quantizer in enumerate(("rtn", "gptq")):
        design = grid({"N": (1e7, 3e7, 1e8), "D": (1e9, 2e9, 4e9, 8e9), "P": (3.0, 4.0, 5.0)}, run=("N",))
        data = simulate(make_law("kumar"), KUMAR, design, noise=0.05, seed=place)
        frames.append(pd.DataFrame({**data, "quantizer": quantizer}))
    one = pd.concat(frames, ignore_index=True).rename(columns={"N": "params", "D": "tokens", "P": "bits"})
    before = one.drop_duplicates(["params", "tokens"]).assign(quantizer="none", delta=np.nan, bits=np.nan)
    whole = pd.concat([before, one], ignore_index=True).drop(columns="checkpoint")
    loss = 2 + 4e3 / whole["params"] ** 0.5 + 2e4 / whole["tokens"] ** 0.5
    return whole.assign(loss=loss * (1 + 1e-3 * np.sin(whole["tokens"] + whole["params"])))


@pytest.fixture
def runs(frame, tmp_path):
    frame.to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path / "runs.csv"


@pytest.mark.drawn("png")
def test_the_page_names_scores_reasons_and_the_command(ptq_eval, runs, tmp_path):
    described = tmp_path / "tables.toml"
    described.write_text('[mine]\ntitle = "Mine | ours"\nsource = "me"\nlicence = "CC0"\nby = "quantizer"\n')
    answer = ptq_eval("arena", f"mine={runs}", "--tables", described, *FEW, "-o", tmp_path / "o")
    assert (answer.code, answer.err) == (0, "")
    page = (tmp_path / "o/arena.md").read_text()
    assert "| mine | Mine \\| ours | me | CC0 |" in page
    assert str(tmp_path) not in page.replace(str(described), "")
    assert "ptq-eval arena mine=runs.csv --tables" in page
    assert "## mine, rtn: δ" in page
    assert "chen: not identified: it reads G, which is not known of 36 of 36 points." in page
    reason = (
        "*stays as it is* and *power of D and N per bit-width*: not identified with each bit-width in turn held out"
    )
    assert f"{reason}: it says nothing of a P that it has not seen." in page
    record = json.loads((tmp_path / "o/arena.json").read_text())
    (table,) = record["tables"]
    assert [(one["label"], one["response"]) for one in table["rankings"]] == [
        ("rtn", "delta"), ("gptq", "delta"), ("all groups", "loss"),
    ]  # fmt: skip
    assert str(tmp_path) not in json.dumps(table)
    rows = pd.read_csv(tmp_path / "o/arena.csv")
    own = rows[(rows["ranking"] == "rtn") & (rows["law"] == "kumar")]
    assert {*own["place"]} <= {"best", "not_different", "no_error"}
    assert {*rows.loc[rows["law"] == "chen", "reason"]} == {"variable_unknown"}
    assert (tmp_path / "o/figures/arena.png").exists()


@pytest.mark.slow
def test_a_repeated_command_writes_the_same(ptq_eval, runs, tmp_path):
    for name in ("a", "b"):
        assert (
            ptq_eval("arena", runs, "--laws", "ratio", "--where", "quantizer == 'rtn'", "-o", tmp_path / name).code == 0
        )
    assert (tmp_path / "a/arena.json").read_bytes() == (tmp_path / "b/arena.json").read_bytes()


def test_a_table_without_other_d_says_so(ptq_eval, frame, tmp_path):
    frame[frame["tokens"] == 4e9].to_csv(tmp_path / "one.csv", index=False)
    answer = ptq_eval("arena", tmp_path / "one.csv", "--laws", "kumar", "-o", tmp_path / "o")
    assert answer.code == 0
    assert "largest D of each run: not identified, all points have one D" in answer.out
    assert "fixed at gamma_D = 0" in answer.out


def test_too_many_points_are_thinned_by_whole_checkpoints(ptq_eval, runs, tmp_path):
    arguments = ("--laws", "ratio", "--most-points", "24", "-o", tmp_path / "o")
    assert ptq_eval("arena", runs, *arguments).code == 0
    (one, *_) = json.loads((tmp_path / "o/arena.json").read_text())["tables"][0]["rankings"]
    assert (one["n_points"], one["thinned_from"]) == (24, 36)
    assert "whole checkpoints drawn from 36 points" in (tmp_path / "o/arena.md").read_text()


def test_rows_that_a_table_has_twice_are_counted(ptq_eval, frame, tmp_path):
    own = frame[frame["quantizer"] == "rtn"]
    pd.concat([own, own.head(7)]).to_csv(tmp_path / "twice.csv", index=False)
    assert ptq_eval("arena", tmp_path / "twice.csv", "--laws", "ratio", "-o", tmp_path / "o").code == 0
    page = (tmp_path / "o/arena.md").read_text()
    assert "43 points of 3 runs" in page
    assert "; 7 points the same as an earlier one in every column, each counted again" in page


BAD = {
    "no file": (["none.csv"], DataFileError),
    "text for numbers": (["text.csv", "--laws", "chinchilla"], TextColumnError),
    "no row": (["runs.csv", "--where", "bits > 40"], ExpressionError),
    "unknown law": (["runs.csv", "--laws", "kumr"], UnknownPluginError),
    "unknown column": (["runs.csv", "--by", "quantiser"], ColumnError),
    "two of one name": (["runs.csv", "runs.csv"], OptionError),
    "no name": (["=runs.csv"], OptionError),
    "no description": (["runs.csv", "--tables", "none.toml"], DataFileError),
    "torn description": (["runs.csv", "--tables", "torn.toml"], DataFileError),
    "unknown key": (["runs.csv", "--tables", "key.toml"], OptionError),
    "other table": (["runs.csv", "--tables", "other.toml"], OptionError),
    "nothing": (["words.csv"], NothingToFitError),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_its_exit_code(ptq_eval, runs, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.toml").write_text("[runs")
    (tmp_path / "key.toml").write_text('[runs]\ntitel = "x"\n')
    (tmp_path / "other.toml").write_text('[runz]\ntitle = "x"\n')
    (tmp_path / "text.csv").write_text("params,tokens,loss\nsmall,1e9,2\nlarge,1e9,3\n")
    (tmp_path / "words.csv").write_text("a,b\n1,2\n")
    arguments, error = BAD[case]
    answer = ptq_eval("arena", *arguments, "-o", "o")
    assert (answer.code, answer.out) == (error.exit_code, "")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_an_output_folder_is_a_table(ptq_eval, tmp_path):
    answer = ptq_eval("arena", ROOT / "results/formats", "--laws", "ratio", "-o", tmp_path / "o")
    assert answer.code == 0
    (table,) = json.loads((tmp_path / "o/arena.json").read_text())["tables"]
    assert table["name"] == "formats"
    assert {one["response"] for one in table["rankings"]} == {"delta"}
    assert "too few runs for errors" in (tmp_path / "o/arena.md").read_text()


@pytest.mark.parametrize("given", [("--where", "bits == 3"), ("--by", "quantizer"), ("--columns", "N=params")])
def test_how_a_table_is_read_is_no_question_to_an_output_folder(ptq_eval, given, tmp_path):
    answer = ptq_eval("arena", f"mine={ROOT / 'results/embedded'}", *given, *FEW, "-o", tmp_path / "o")
    assert answer.code == OptionError.exit_code
    assert given[0][2:] in answer.err
    assert "degradation.csv" in answer.err
    assert not (tmp_path / "o").exists()


def test_repeated_points_are_found_whatever_windows_they_have():
    unknown = {"G": np.array([np.nan, np.nan, 1.0]), "design": np.array([None, {}, None], dtype=object)}
    assert _repeats({"D": np.array([1.0, 1.0, 1.0]), "windows": np.zeros((3, 4)), **unknown}) == 1
