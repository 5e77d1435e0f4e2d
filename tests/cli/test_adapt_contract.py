"""Contract of `ptq-eval adapt`: files, resumption run by run, and one line for every wrong request."""

import json
import sys
from importlib.metadata import EntryPoint

import pandas as pd
import pytest

from ptq_eval import plugins
from ptq_eval.adapt import training
from ptq_eval.jobs import adapt as job

FLAGS = ("--epochs", "1", "--batch-size", "2", "--train-windows", "6", "--noise-batches", "2", "--rank", "2")


@pytest.fixture
def adapt(ptq_eval, material, quick, tmp_path):
    """adapt(*flags, checkpoint=the first one) -> Answer"""
    few = [one for one in quick if one not in ("--bootstrap", "10")]

    def call(*flags, checkpoint=material.run / "checkpoint-100", out=tmp_path / "out"):
        texts = ("--train-text", material.calibration, "--bits", "16,4,3", "--seeds", "0,1")
        return ptq_eval("adapt", checkpoint, "-o", out, *few, *FLAGS, *texts, *flags)

    return call


def content(path):
    found = json.loads(path.read_text())
    return {name: value for name, value in found.items() if name not in ("provenance", "cost")}


def test_files_and_columns(adapt, tmp_path):
    answer = adapt()
    assert (answer.code, answer.err) == (0, "")
    out = tmp_path / "out"
    names = {f"metrics_{bits}_{seed}.json" for bits in (16, 4, 3) for seed in (0, 1)}
    assert {path.name for path in out.glob("metrics_*")} == names
    one = json.loads((out / "metrics_3_1.json").read_text())
    assert (one["bits"], one["seed"], one["quantizer"], len(one["epochs"])) == (3, 1, "rtn", 2)
    for epoch in one["epochs"]:
        assert {"loss", "perplexity", "gradient_norm", "gradient_variance"} <= set(epoch)
        assert epoch["gradient_variance"] > 0
    assert one["cost"]["steps"] == 3
    assert one["cost"]["seconds"] > 0
    table = pd.read_csv(out / "summary.csv").set_index(["bits", "seed"])
    assert len(table) == 6
    full = json.loads((out / "metrics_16_1.json").read_text())
    for moment, column in ((0, "delta_before"), (-1, "delta")):
        apart = one["epochs"][moment]["loss"] - full["epochs"][moment]["loss"]
        assert table.loc[(3, 1), column] == pytest.approx(apart, abs=1e-9)
    assert (table.loc[16, "delta"] == 0).all()
    assert len(pd.read_csv(out / "cost.csv")) == 6
    assert len(pd.read_csv(out / "epochs.csv")) == 12
    predicted = pd.read_csv(out / "predictions.csv")
    assert predicted["bits"].tolist() == [4, 3]
    assert (predicted["residual"] < predicted["predicted"]).all()
    assert (predicted["predicted"] <= predicted["bound"] * (1 + 1e-9)).all()
    assert predicted["predicted"][1] / predicted["predicted"][0] == pytest.approx((15 / 7) ** 2, rel=1e-4)
    assert (predicted[["uniform", "quadratic", "variance_uniform"]] > 0).all(axis=None)
    assert predicted["kl"][1] == pytest.approx(table.loc[(3, 0), "kl_before"], rel=1e-3)
    for name in ("loss", "noise"):
        for kind in ("png", "pdf", "csv"):
            assert (out / "figures" / f"{name}.{kind}").exists()
    assert "# Adapters on quantized bases" in (out / "adapt.md").read_text()


@pytest.mark.slow
def test_an_interrupted_command_goes_on_run_by_run(adapt, monkeypatch, tmp_path):
    whole, out, trained = tmp_path / "whole", tmp_path / "out", []

    def counted(*arguments):
        if len(trained) == stop:
            raise KeyboardInterrupt
        trained.append(arguments[5])
        return training.train(*arguments)

    monkeypatch.setattr(job, "train", counted)
    stop = 3
    assert adapt().code == 130
    before = {path.name: path.read_bytes() for path in out.glob("metrics_*")}
    assert len(before) == 3
    stop = None
    assert adapt().code == 0
    assert len(trained) == 6
    assert {path.name: path.read_bytes() for path in out.glob("metrics_*") if path.name in before} == before
    assert adapt().code == 0
    assert adapt("--bits", "16").code == 0
    assert len(trained) == 6
    assert adapt("--seeds", "0,1,2", "--bits", "3").code == 0
    assert len(trained) == 8
    adapt(out=whole)
    for path in whole.glob("metrics_*"):
        assert content(path) == content(out / path.name)


def test_other_options_do_not_mix(adapt):
    assert adapt("--bits", "16", "--seeds", "0").code == 0
    adapt("--bits", "16", "--seeds", "0", "--rank", "3").refuses(
        21, "another checkpoint, text or options", "metrics_16_0"
    )


def test_quantizers_by_name_have_files_of_their_own(adapt, tmp_path):
    assert adapt("--quantizers", "rtn,gptq,awq", "--bits", "3", "--seeds", "0").code == 0
    names = {path.name for path in (tmp_path / "out").glob("metrics_3*")}
    assert names == {"metrics_3_0.json", "metrics_3_gptq_0.json", "metrics_3_awq_0.json"}
    table = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert table["loss_before"].nunique() == 4


def test_a_wrong_request_is_one_line(adapt, material, tmp_path, monkeypatch):
    adapt("--bits", "9").refuses(19, "a width that no quantizer makes", "got 9")
    adapt("--bits", "1").refuses(19, "--bits is too small")
    adapt("--noise-batches", "4").refuses(
        2, "would share windows", "--batch-size 2 with --train-windows 6", "at least 8"
    )
    adapt("--seeds", "").refuses(2, "--seeds needs a value")
    adapt(checkpoint=material.run).refuses(2, "adaptation starts from one checkpoint", "checkpoint-300")
    adapt(checkpoint=tmp_path / "nothing").refuses(10)
    adapt("--train-windows", "6", "--train-text", tmp_path / "none.txt").refuses(24)
    adapt("--rank", "99").refuses(2, "--rank is larger than every layer", "at most 32")
    (tmp_path / "file").write_text("")
    adapt(out=tmp_path / "file").refuses(32, "the output folder is a file")
    (tmp_path / "short.txt").write_text("too short")
    adapt("--train-text", tmp_path / "short.txt").refuses(16, "the text does not fill one window", "short.txt")
    (tmp_path / "few.txt").write_text("some words more\n" * 3)
    adapt("--train-text", tmp_path / "few.txt").refuses(16, "would share windows", "few.txt", "at least 4 windows")
    assert not (tmp_path / "out" / "metrics_16_0.json").exists()
    adapt("--eval-text", tmp_path / "short.txt").refuses(16, "the text does not fill one window", "short.txt")
    monkeypatch.setitem(sys.modules, "peft", None)
    adapt().refuses(61, "adaptation needs the package peft", "pip install 'ptq-eval[adapt]'")


def test_a_method_of_one_width_is_not_adapted_at_another_without_a_word(adapt, monkeypatch, tmp_path):
    points = plugins._points
    own = EntryPoint("single", "tests.backends.fakes:Single", "ptq_eval.backends")
    monkeypatch.setattr(plugins, "_points", lambda kind: points(kind) | ({"single": own} if kind == "backends" else {}))
    monkeypatch.setenv("PTQ_EVAL_BACKENDS", str(tmp_path / "backends"))
    answer = adapt("--quantizers", "single:rtn", "--bits", "3", "--seeds", "0")
    said = "The base single:rtn has 4 bits, the only width of this method, not 3 as in --bits"
    assert answer.code == 0
    assert answer.err.splitlines() == [f"ptq-eval: {said}"]
    assert said in (tmp_path / "out" / "adapt.md").read_text()
    assert pd.read_csv(tmp_path / "out" / "summary.csv")["bits"].tolist() == [16, 4]
    answer = adapt("--quantizers", "single:rtn", "--bits", "4,3", "--seeds", "0", out=tmp_path / "other")
    assert (answer.code, answer.err) == (0, "")


def test_training_on_the_evaluation_text_is_said(adapt, material, tmp_path):
    answer = adapt("--bits", "16", "--seeds", "0", "--train-text", material.evaluation)
    assert answer.code == 0
    said = "training and evaluation are drawn from the same text"
    assert said in answer.err.lower()
    assert answer.err.count("\n") == 1
    page = (tmp_path / "out" / "adapt.md").read_text()
    assert said in page.lower()
    assert not (tmp_path / "out" / "predictions.csv").exists()


def test_the_embedded_checkpoint_is_the_default():
    assert job.root_of(None) == job.EMBEDDED
    assert job.EMBEDDED.is_dir()
