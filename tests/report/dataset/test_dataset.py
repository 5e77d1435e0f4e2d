"""Contract and oracle: results as Parquet, SQLite, lm-eval's results and a card hold what was measured."""

import json
import sqlite3
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml

import ptq_eval
from ptq_eval.errors import NothingToFitError
from ptq_eval.records import CalibrationDraw
from tests.results.gate.support import TOKENS, WINDOWS, grid, moved, noise, write


@pytest.fixture(scope="module")
def found():
    measurements = grid(draws=2)
    early = tuple(range(0, WINDOWS, 2))
    last = measurements[-1]
    cut = {name: tuple(getattr(last, name)[i] for i in early) for name in ("nll", "n_tokens", "n_bytes", "kl", "agree")}
    measurements[-1] = replace(last, windows=early, **cut)
    return [*measurements[:-2], replace(measurements[-2], nll=(), status="failed", message="no"), measurements[-1]]


@pytest.fixture(scope="module")
def out(found, tmp_path_factory):
    return write(tmp_path_factory.mktemp("dataset") / "out", found)


@pytest.fixture(scope="module")
def data(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    written = ptq_eval.dataset(out, folder)
    assert {path for path in folder.rglob("*") if path.is_file()} == set(written)
    return folder


def test_the_table_is_that_of_the_run(out, data):
    table, stored = ptq_eval.load(out, bootstrap=5).table, pd.read_parquet(data / "degradation.parquet")
    assert list(stored) == list(table)
    for name in ("delta", "delta_se", "loss_q", "loss_fp"):
        assert np.allclose(stored[name].astype(float), table[name].astype(float), equal_nan=True)
    assert stored["bits"].dtype == "Int64"
    assert stored["key"].tolist() == table["key"].tolist()


def test_windows_are_those_of_the_records(found, data):
    windows = pd.read_parquet(data / "windows.parquet")
    assert len(windows) == sum(len(m.nll) for m in found)
    for m in found:
        own = windows[windows["key"] == m.trial.key()]
        assert own["nll"].tolist() == list(m.nll)
        assert own["window"].tolist() == list(m.windows or range(len(m.nll)))
        assert own["tokens"].eq(TOKENS).all()
    assert windows["bytes"].eq(TOKENS).all()
    assert windows.loc[windows["quantizer"] == "none", "kl"].isna().all()
    assert windows.loc[windows["quantizer"] == "gptq", "calibration_seed"].isin([0, 1]).all()


def test_sqlite_has_the_same_rows(data):
    with sqlite3.connect(data / "results.sqlite") as database:
        for name in ("degradation", "windows"):
            stored = pd.read_parquet(data / f"{name}.parquet")
            [[count]] = database.execute(f"SELECT COUNT(*) FROM {name}").fetchall()
            assert count == len(stored)
        [[loss]] = database.execute("SELECT SUM(nll) / SUM(tokens) FROM windows WHERE quantizer = 'rtn' AND bits = 3")
    windows = pd.read_parquet(data / "windows.parquet").query("quantizer == 'rtn' and bits == 3")
    assert loss == pytest.approx(windows["nll"].sum() / windows["tokens"].sum())


def test_the_results_of_lm_eval_have_the_losses_and_their_errors(found, out, data):
    table = ptq_eval.load(out, bootstrap=5).table.set_index("key")
    folders = list((data / "lm-eval").iterdir())
    assert len(folders) == sum(bool(m.nll) for m in found)
    for folder in folders:
        [results] = folder.glob("results_*.json")
        content = json.loads(results.read_text())
        [metrics] = content["results"].values()
        [samples] = folder.glob("samples_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        logs = np.array([line["token_perplexity"] for line in lines])
        assert metrics["loss,none"] == pytest.approx(-logs[:, 0].sum() / logs[:, 1].sum())
        assert metrics["token_perplexity,none"] == pytest.approx(np.exp(metrics["loss,none"]))
        key = content["config"]["model_args"]["key"]
        if key in table.index:
            row = table.loc[key]
            assert metrics["loss_stderr,none"] == pytest.approx(np.nan_to_num(row["loss_q_se"]) or row["loss_fp_se"])


def test_the_results_of_lm_eval_are_compared_as_the_records_are(tmp_path):
    """Two ways to the same difference: records window by window, and lm-eval's documents."""
    old, new = grid(steps=(100,)), moved(grid(steps=(100,)), noise(0.01), quantizer="rtn", bits=3)
    for name, measurements in (("old", old), ("new", new)):
        ptq_eval.dataset(write(tmp_path / name, measurements), tmp_path / f"{name}-data")
    [old_model, new_model] = [
        next((tmp_path / f"{name}-data" / "lm-eval").glob("tiny@100-rtn-3bits-*")) for name in ("old", "new")
    ]
    found = ptq_eval.compare(old_model, new_model).cells
    [documents] = [one for one in found if one.pair.about["metric"] == "token_perplexity"]
    cells = ptq_eval.compare(tmp_path / "old", tmp_path / "new").cells
    [windows] = [c for c in cells if (c.pair.about["quantizer"], c.pair.about["bits"]) == ("rtn", 3)]
    assert documents.pair.base == pytest.approx(windows.pair.base)
    assert documents.pair.evidence.worsening == pytest.approx(windows.pair.evidence.worsening, abs=1e-9)


def test_the_card_is_one_that_the_hub_reads(data):
    _, head, body = (data / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    configs = {one["config_name"]: one["data_files"] for one in yaml.safe_load(head)["configs"]}
    assert configs == {"degradation": "degradation.parquet", "windows": "windows.parquet"}
    assert all((data / name).exists() for name in configs.values())
    columns = pd.read_parquet(data / "windows.parquet").columns
    assert all(f"| `{name}` |" in body for name in columns)
    assert "| quantizers | gptq, rtn |" in body


def test_the_hub_library_loads_both_tables(data, tmp_path):
    import datasets

    for name in ("degradation", "windows"):
        loaded = datasets.load_dataset(str(data), name, split="train", cache_dir=str(tmp_path))
        assert len(loaded) == len(pd.read_parquet(data / f"{name}.parquet"))


def test_writing_again_replaces_the_files(out, data, tmp_path):
    for _ in range(2):
        ptq_eval.dataset(out, tmp_path / "data")
    assert (tmp_path / "data" / "README.md").read_text() == (data / "README.md").read_text()
    assert not list((tmp_path / "data").rglob(".*"))


def test_what_is_no_output_folder_is_refused(tmp_path):
    with pytest.raises(NothingToFitError, match="not an output folder"):
        ptq_eval.dataset(tmp_path, tmp_path / "data")


def test_seeds_that_are_not_known_are_missing(tmp_path):
    measurements = [
        replace(m, trial=replace(m.trial, calibration_draw=CalibrationDraw("text", 4, 32, None)))
        if m.trial.calibration_draw
        else m
        for m in grid(steps=(100,))
    ]
    ptq_eval.dataset(write(tmp_path / "out", measurements), tmp_path / "data")
    assert pd.read_parquet(tmp_path / "data" / "windows.parquet")["calibration_seed"].isna().all()
