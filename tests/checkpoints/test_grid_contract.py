"""Contract: weights that were quantized and saved as floats are named, and no others."""

import numpy as np
import pytest
import torch

from ptq_eval.checkpoints import discover, verify
from ptq_eval.checkpoints.grid import Grid, grid_of
from tests.checkpoints.support import codes, llama_config, rewrite


@pytest.fixture
def folder(save, tmp_path):
    save(tmp_path / "m", config=llama_config(tie_word_embeddings=False))
    return tmp_path / "m"


def rounded(matrix, bits, group, symmetric=True):
    """Rounded to nearest with a scale per group of a row, as floats."""
    parts = matrix.float().reshape(-1, group)
    low = -parts.abs().amax(dim=1, keepdim=True) if symmetric else parts.amin(dim=1, keepdim=True)
    high = -low if symmetric else parts.amax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1 - symmetric)
    return ((parts / scale).round() * scale).reshape(matrix.shape).to(matrix.dtype)


def eight_bit_floats(matrix, kind, group):
    parts = matrix.float().reshape(-1, group)
    scale = parts.abs().amax(dim=1, keepdim=True) / torch.finfo(kind).max
    return ((parts / scale).to(kind).float() * scale).reshape(matrix.shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, "row", "column"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_were_quantized_and_dequantized_are_named(folder, bits, group, dtype):
    def change(name, x):
        if "_proj" not in name:
            return x.to(dtype)
        if group == "column":
            return rounded(x.T.contiguous(), bits, x.shape[0]).T.contiguous().to(dtype)
        return rounded(x, bits, min(x.shape[1], 10**6 if group == "row" else group)).to(dtype)

    rewrite(folder, lambda ts: {n: change(n, x) for n, x in ts.items()})
    found = verify(discover([folder])[0])
    assert [(p.code, p.fatal) for p in found.problems] == [("coarse_weights", False)]
    assert "proj" in found.problems[0].message
    assert "embed" not in found.problems[0].message
    assert ("8 bits or fewer" if bits == 8 else "4 bits or fewer") in found.problems[0].message
    assert "that it was quantized from" in found.problems[0].remedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.1])
def test_trained_and_pruned_weights_are_on_no_grid(folder, dtype, kept):
    torch.manual_seed(0)
    rewrite(folder, lambda ts: {n: (x * (torch.rand_like(x) < kept)).to(dtype) for n, x in ts.items()})
    assert codes(verify(discover([folder])[0])) == []


STORED = {torch.float32: np.uint32, torch.float16: np.uint16, torch.bfloat16: np.uint16}


def judged(matrix, dtype):
    from ptq_eval.checkpoints.weights import _FLOATS, TORCH_TYPES, _numbers

    stored = matrix.to(dtype).contiguous().view(torch.uint8).numpy().reshape(-1)
    kind = _FLOATS[TORCH_TYPES[str(dtype).removeprefix("torch.")]]
    return grid_of(stored.view(kind), matrix.shape[1], _numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [32, 128, 512])
@pytest.mark.parametrize("seed", range(3))
def test_every_grid_of_eight_bits_is_seen(dtype, group, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(96, 512) * 0.02
    for bits in (5, 6, 8):
        for symmetric in (True, False):
            assert judged(rounded(matrix, bits, group, symmetric), dtype) is Grid.STEPS
    for kind in (torch.float8_e4m3fn, torch.float8_e5m2):
        assert judged(eight_bit_floats(matrix, kind, group), dtype) in (Grid.FEW_MANTISSAS, Grid.STEPS)


DRAWN = {
    "normal": lambda: torch.randn(96, 512) * 0.02,
    "uniform": lambda: torch.rand(96, 512) - 0.5,
    "heavy tails": lambda: torch.distributions.StudentT(2.0).sample((96, 512)) * 0.01,
    "large": lambda: torch.randn(96, 512) * 300,
    "narrow": lambda: torch.randn(96, 40),
    "around one": lambda: 1 + torch.randn(96, 512) * 0.1,
    "sparse": lambda: torch.randn(96, 512) * (torch.rand(96, 512) < 0.5),
    "outliers": lambda: torch.randn(96, 512) * torch.exp(torch.randn(1, 512) * 2),
    "low rank": lambda: torch.randn(96, 2) @ torch.randn(2, 512),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", DRAWN)
def test_weights_of_any_distribution_are_on_no_grid(dtype, kind):
    for seed in range(5):
        torch.manual_seed(seed)
        assert judged(DRAWN[kind](), dtype) is None
