"""Contract: the comparison of losses says what its arrays say, and can fail."""

import math

import numpy as np
import pytest
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks import quality
from benchmarks.harness import ROOT
from benchmarks.peers.parts import linear_names
from benchmarks.subjects import last_of_each_run, random_llama
from quantizers import Scheme, get_quantizer

WINDOWS = 16


def nll(mean, draws=2):
    """Losses of windows around a mean, one array a draw."""
    waves = np.sin(np.arange(WINDOWS))
    return [mean + 0.1 * (waves - waves.mean()) + 0.001 * draw for draw in range(draws)]


def test_ours_is_held_against_the_best_of_its_kind_of_each_draw():
    ours, a, b = nll(2.0), nll(2.1), nll(1.99)
    b[1] = b[1] + 0.5  # the second draw is a's
    own = {"ours": ours, "ours, shared calibration": nll(2.3), "ours, by activity": nll(1.0)}
    by = {**own, "neural-compressor": a, "auto-round": b}
    held, shared = quality.claims_of({("gptq", False, 2): by})
    assert (held.low, held.high) == pytest.approx((math.exp(-0.1), math.exp(0.01)))
    assert "gptq, asymmetric, 2 bits" in held.what
    assert held.limit == 1.005
    assert held.met
    assert shared.met is False


def test_like_is_held_against_like():
    """Clipping against clipping, and a symmetric grid against the same one."""
    assert set(quality.rivals("ours", "awq", True)) == {"llm-compressor"}
    assert set(quality.rivals("ours, clipping", "awq", False)) == {"gptqmodel", "neural-compressor"}
    assert set(quality.rivals("ours", "rtn", False)) == set(quality.QUANTIZING)
    assert set(quality.rivals("ours, by activity", "gptq", True)) == {"gptqmodel", "llm-compressor"}
    assert set(quality.rivals("ours", "gptq", False)) == {"neural-compressor", "modelopt", "auto-round"}
    by = {"ours": nll(2.0), "ours, clipping": nll(1.9), "gptqmodel": nll(1.9), "auto-round": nll(2.0)}
    assert [claim.value for claim in quality.claims_of({("awq", False, 2): by})] == pytest.approx([1, 1])


def test_a_cell_without_a_package_makes_no_claim():
    assert not list(quality.claims_of({("gptq", True, 2): {"ours": nll(2.0), "ours, shared calibration": nll(2.0)}}))


def test_a_line_tells_the_paired_difference_and_its_error_over_windows():
    full = np.full(WINDOWS, 1.5)
    noise = np.where(np.arange(WINDOWS) % 2, 0.01, -0.01)
    by = {"ours": nll(2.0, 1), "a": [nll(2.2, 1)[0] + noise]}
    own, other = quality.rows_of(by, ("rtn", True, 3), full)
    assert own[:3] == [3, "ours", pytest.approx(0.5)]
    bits, side, delta, gap, error, spread, ratio = other
    assert (bits, side, spread) == (3, "a", None)
    assert delta == pytest.approx(0.7)
    assert gap == pytest.approx(-0.2)
    assert error == pytest.approx(noise.std(ddof=1) / 4)
    assert ratio == pytest.approx(math.exp(-0.2))


def test_a_grid_is_told_by_its_values_and_its_distance_from_ours(tmp_path):
    checkpoint, _, _ = random_llama(tmp_path, 1, hidden_size=32, intermediate_size=64, num_hidden_layers=1)
    state, key = AutoModelForCausalLM.from_pretrained(checkpoint.location).state_dict(), ("rtn", True, 2)
    ours, narrow = {}, {}
    for layer in linear_names(checkpoint.location):
        name = f"{layer}.weight"
        scheme = Scheme(2, quality.GROUP, True)
        ours[name] = get_quantizer("rtn").quantize(state[name], scheme).dequantize().contiguous()
        groups = state[name].reshape(-1, quality.GROUP)
        scale = groups.abs().amax(-1, keepdim=True)
        narrow[name] = ((groups / scale).round() * scale).reshape(state[name].shape).contiguous()
    for weights, values, near in ((ours, 4, True), (narrow, 3, False)):
        save_file(weights, tmp_path / "weights.safetensors")
        most, distance = quality._grid(checkpoint.location, str(tmp_path / "weights.safetensors"), key)
        assert most == values
        assert (distance < 1e-6) is near


@pytest.mark.slow
def test_the_subject_is_one_that_quantization_damages(tmp_path, monkeypatch):
    """Twice the damage at 4 bits would miss the limit; at 2 bits, a hundredth more."""
    checkpoint = last_of_each_run(ROOT / "examples" / "trajectory")[-1]
    losses = {}
    monkeypatch.setattr(quality, "BITS", (2, 3, 4))  # no figure shows 8
    monkeypatch.setattr(quality, "VARIANTS", {"ours": {}, "ours, clipping": quality.VARIANTS["ours, clipping"]})
    full = quality.measure_ours(losses, checkpoint, tmp_path, eval_windows=16, calib_windows=4, calib_seed=0)
    for method in quality.METHODS:
        damage = {bits: losses[method, False, bits]["ours"][0].mean() - full.mean() for bits in quality.BITS}
        assert damage[2] > 0.5
        assert damage[2] > damage[3] > damage[4] > 2 * math.log(quality.LIMIT)
    assert {side for by in losses.values() for side in by} == set(quality.VARIANTS)
    figure = quality._figure(losses, float(full.mean()))
    assert len(figure.axes) == 6
