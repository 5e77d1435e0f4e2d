"""Contract: the benchmarks' own pieces, so that a number they print is about what they say it is about.

What needs another package's environment, or minutes, is not run here.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks import published_gptq
from benchmarks.harness import Claim, Outcome
from benchmarks.peers import environments, jobs
from benchmarks.report import save, write_page
from benchmarks.solver import layer, solve
from benchmarks.subjects import random_llama
from quantizers import LayerStats, Scheme, get_quantizer


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("size", [64, 128])
def test_the_published_algorithm_finds_the_codes_of_gptq(bits, size):
    weight, stats = layer(48, 384, "cpu")
    codes, dense = published_gptq.gptq(weight, published_gptq.upper_factor(stats.hessian), bits, size)
    ours = get_quantizer("gptq").quantize(weight, Scheme(bits, size), stats)
    assert (codes == ours.codes).float().mean() > 0.999
    torch.testing.assert_close(dense[codes == ours.codes], ours.dequantize()[codes == ours.codes])


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


def test_an_environment_that_cannot_be_built_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    monkeypatch.setitem(environments.PEERS, "absent", environments.Peer("absent", ("/no/such/package",)))
    monkeypatch.setattr(environments.venv, "create", lambda *args, **kwargs: None)
    assert environments.python_of("absent") is None
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("absent: left out")


def test_the_driver_quantizes_weighs_and_writes_weights(tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 32}
    checkpoint, _, _ = random_llama(tmp_path, 2, **shape)
    calibration = tmp_path / "calibration.npy"
    np.save(calibration, np.random.default_rng(0).integers(0, 1024, (2, 32)))
    cells = [
        jobs.Cell("rtn", 4, 32, False, str(tmp_path / "rtn.safetensors")),
        jobs.Cell("unheard", 4, 32, False),
    ]
    result = jobs.run_driver(jobs.OURS, tmp_path / "random-llama", calibration, cells, threads=1, timeout=120)
    done, failed = result["cells"]
    assert "unheard" in failed["error"]
    assert done["quantize"]["wall"] > 0
    assert done["memory_peak"] >= result["memory_imported"] > 0

    model = AutoModelForCausalLM.from_pretrained(checkpoint.location)
    written, name = load_file(done["weights"]), "model.layers.0.mlp.down_proj.weight"
    expected = get_quantizer("rtn").quantize(model.state_dict()[name], Scheme(4, 32)).dequantize()
    torch.testing.assert_close(written[name], expected)
    assert torch.equal(written["model.norm.weight"], model.state_dict()["model.norm.weight"])


def test_tables_and_figures_reach_the_page(tmp_path):
    drawn = []
    figure = SimpleNamespace(savefig=lambda path, dpi: drawn.append(path.name))
    details = {"a table": {"columns": ["what", "value"], "rows": [["x", 0.123456789], ["y", None]], "note": "A note."}}
    outcome = Outcome([Claim("speed", 2.0, 1.5, 2.5, 3.0, "at least")], details, {"curve.png": figure})
    facts = {
        "cores_used": 1,
        "cores_present": 2,
        "processor": "p",
        "threads": 1,
        "load_average": 0.0,
        "time": "t",
        "python": "3",
        "versions": {},
        "commit": "",
        "changed_files": 0,
        "seed": 0,
    }
    save(tmp_path, "one", "command", outcome, facts, 1.0)
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
