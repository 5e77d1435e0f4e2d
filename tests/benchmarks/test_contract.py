"""Contract: the benchmarks' own pieces, so that a number they print is about what they say it is about.

What needs another package's environment, or minutes, is not run here.
"""

import json
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks import published_gptq
from benchmarks.harness import Claim, Outcome
from benchmarks.peers import driver, environments, jobs, loop
from benchmarks.peers.kept import full_precision, kept
from benchmarks.report import save, write_page
from benchmarks.solver import layer, solve
from benchmarks.subjects import random_llama
from quantizers import LayerStats, Scheme, get_quantizer
from tests.benchmarks.facts import FACTS
from tests.reference import gptq as reference


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("size", [64, 128])
def test_the_published_algorithm_in_torch_is_that_of_the_paper(bits, size):
    weight, stats = layer(48, 384, "cpu")
    codes, dense = published_gptq.gptq(weight, published_gptq.upper_factor(stats.hessian), bits, size)
    expected, restored = reference.gptq(weight.numpy(), stats.hessian.numpy(), bits, size)
    same = codes.numpy() == expected
    assert same.mean() > 0.999
    np.testing.assert_allclose(dense.numpy()[same], restored[same], rtol=1e-3, atol=1e-6)


def test_the_published_algorithm_rounds_to_nearest_without_correlations():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 256, generator=generator)
    codes, _ = published_gptq.gptq(weight, published_gptq.upper_factor(torch.eye(256)), 4, 64)
    assert torch.equal(codes, get_quantizer("rtn").quantize(weight, Scheme(4, 64)).codes)


def test_a_solve_times_both_sides_and_compares_their_results():
    solved = solve(32, 256, repeats=2, device="cpu")
    assert len(solved.pairs) == len(solved.grid) == 2
    assert all(side.wall > 0 for pair in solved.pairs for side in pair)
    assert solved.equal > 0.999
    assert solved.error[0] == pytest.approx(solved.error[1], rel=1e-3)


def test_an_installation_that_takes_too_long_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    def late(*arguments, **options):
        raise subprocess.TimeoutExpired("pip", 1800, stderr=b"ERROR: slow")

    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setattr(environments.venv, "create", lambda *args, **kwargs: None)
    monkeypatch.setattr(environments.subprocess, "run", late)
    assert environments.python_of("auto-round") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("auto-round: left out")


def test_an_environment_that_cannot_be_built_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setitem(environments.PEERS, "absent", environments.Peer("absent", ("/no/such/package",)))
    monkeypatch.setattr(environments.venv, "create", lambda *args, **kwargs: None)
    assert environments.python_of("absent") is None
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("absent: left out")


@pytest.mark.slow
def test_the_driver_quantizes_weighs_and_writes_weights(tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 32}
    checkpoint, _, _ = random_llama(tmp_path, 2, **shape)
    calibration = tmp_path / "calibration.npy"
    np.save(calibration, np.random.default_rng(0).integers(0, 1024, (2, 32)))
    cells = [
        jobs.Cell("rtn", 4, 32, False, str(tmp_path / "rtn.safetensors")),
        jobs.Cell("unheard", 4, 32, False),
    ]
    job = {"evaluation": str(calibration), "batch": 1}
    result = jobs.run_driver(jobs.OURS, tmp_path / "random-llama", calibration, cells, threads=1, timeout=120, **job)
    done, failed = result["cells"]
    assert "unheard" in failed["error"]
    assert done["quantize"]["wall"] > 0
    assert done["memory_peak"] >= result["memory_imported"] > 0

    model = AutoModelForCausalLM.from_pretrained(checkpoint.location)
    written, name = load_file(done["weights"]), "model.layers.0.mlp.down_proj.weight"
    expected = get_quantizer("rtn").quantize(model.state_dict()[name], Scheme(4, 32)).dequantize()
    torch.testing.assert_close(written[name], expected)
    assert torch.equal(written["model.norm.weight"], model.state_dict()["model.norm.weight"])

    # Saved, reloaded and evaluated too: this package's driver packs nothing, so densely.
    ids = torch.from_numpy(np.load(calibration))
    assert result["full"]["loss"] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    model.load_state_dict(written)
    assert done["loss"] == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    assert done["form"] == "dense"
    assert "packed" in done["reason"]
    assert all(done[part]["wall"] > 0 for part in loop.AFTER)


class Lossy:
    """A package whose file holds another model than the one it quantized."""

    @staticmethod
    def save(model, folder):
        with torch.no_grad():
            model.model.norm.weight *= 1.2
        model.save_pretrained(folder)


def test_a_file_that_holds_another_model_is_told_and_the_dense_weights_are_kept_instead(tmp_path):
    checkpoint, text, _ = random_llama(tmp_path, 1, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.location)
    weights, evaluation = tmp_path / "weights.safetensors", tmp_path / "windows.npy"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, weights)
    np.save(evaluation, np.load(text).reshape(1, -1)[:, :32])
    job = {"model": checkpoint.location, "evaluation": str(evaluation), "batch": 1}
    found = kept(Lossy, job, model, model, driver.linear_names(checkpoint.location), weights)
    assert found["form"] == "dense"
    assert "model.norm.weight is 20.0% off" in found["reason"]
    assert found["loss"] == pytest.approx(full_precision(job)["loss"], rel=1e-6)


def test_seconds_of_the_loop_are_those_of_its_parts_counted_for_every_checkpoint():
    cell = {"load": 1.0, "quantize": 10.0, "save": 2.0, "reload": 3.0, "evaluate": 5.0}
    packages = {
        "a": {"import": 100.0, "full": {"load": 1.0, "evaluate": 6.0}},
        "b": {"import": 200.0, "full": {"load": 1.0, "evaluate": 7.0}},
    }
    cells = {"rtn": {4: cell, 8: cell}, "awq": {4: cell}}
    found = loop.seconds({"packages": packages, "cells": cells, "bare": 4.0}, checkpoints=2)
    assert found["quantizing"] == 2 * 3 * 11
    assert found["evaluations"] == 2 * (3 + 1) * 4
    assert found["granted"] == 66 + 300 + 32
    assert found["offered"] == 66 + 300 + 2 * (3 * 10 + 7)
    assert found["again"] == found["offered"] + 2 * (3 - 1) * 4


def test_tables_and_figures_reach_the_page(tmp_path):
    drawn = []
    figure = SimpleNamespace(savefig=lambda path, dpi: drawn.append(path.name))
    details = {"a table": {"columns": ["what", "value"], "rows": [["x", 0.123456789], ["y", None]], "note": "A note."}}
    outcome = Outcome([Claim("speed", 2.0, 1.5, 2.5, 3.0, "at least")], details, {"curve.png": figure})
    save(tmp_path, "one", "command", outcome, FACTS, 1.0)
    page = write_page(tmp_path, ("one",))
    assert drawn == ["curve.png"]
    assert "| x | 0.12346 |" in page
    assert "| y |  |" in page
    assert "![one](curve.png)" in page
    assert "| speed | 2 (1.5 – 2.5) | at least 3 | **no** |" in page
    assert json.loads((tmp_path / "one.json").read_text())["claims"][0]["met"] is False


def test_statistics_of_a_layer_are_those_of_correlated_inputs():
    _, stats = layer(8, 64, "cpu")
    assert isinstance(stats, LayerStats)
    hessian = stats.hessian
    off = hessian - torch.diag(hessian.diagonal())
    assert off.abs().sum() > 0.1 * hessian.diagonal().sum()
