"""Contract: weights that were quantized and saved as floats are named, and no others."""

import pytest
import torch

from ptq_eval.checkpoints import discover, verify
from tests.checkpoints.support import codes, llama_config, rewrite


@pytest.fixture
def folder(save, tmp_path):
    save(tmp_path / "m", config=llama_config(tie_word_embeddings=False))
    return tmp_path / "m"


def rounded(matrix, bits, group):
    """Rounded to nearest with a scale per group of a row, as floats."""
    parts = matrix.float().reshape(-1, group)
    scale = parts.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((parts / scale).round() * scale).reshape(matrix.shape).to(matrix.dtype)


@pytest.mark.parametrize("bits", [2, 3, 4])
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
    assert "that it was quantized from" in found.problems[0].remedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [1.0, 0.5, 0.1])
def test_trained_and_pruned_weights_are_on_no_grid(folder, dtype, kept):
    torch.manual_seed(0)
    rewrite(folder, lambda ts: {n: (x * (torch.rand_like(x) < kept)).to(dtype) for n, x in ts.items()})
    assert codes(verify(discover([folder])[0])) == []
