"""nanochat's five architectures against a model written out by hand, from files as nanochat saves them."""

import json

import numpy as np
import pytest
import torch

from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.models.language_model import LanguageModel
from tests.checkpoints.support import nanochat_run
from tests.reference.nanochat import logits

FIXED = {
    "A": {"short": 0, "theta": 1e4, "qk_scale": 1.0, "gate_range": 2.0},
    "B": {"short": 150, "theta": 1e4, "qk_scale": 1.0, "gate_range": 2.0},
    "C": {"short": 150, "theta": 1e4, "qk_scale": 1.0, "gate_range": 2.0},
    "D": {"short": 128, "theta": 1e5, "qk_scale": 1.15, "gate_range": 3.0},
    "E": {"short": 128, "theta": 1e5, "qk_scale": 1.2, "gate_range": 3.0},
}
"""What each version fixes, for a sequence_len of 300."""


@pytest.mark.parametrize("era", FIXED)
def test_the_logits_are_those_of_the_equations(tmp_path, era):
    folder = nanochat_run(tmp_path / "base_checkpoints" / "d3", era, steps=(10,))
    # The tables of rotations were rounded to bfloat16 in the first versions, which the equations do not say.
    given = {"architecture": {"rope_table": ""}}
    (checkpoint,) = verify_all(discover([folder], overrides=given))
    assert not checkpoint.fatal, checkpoint.fatal
    place = local_path(checkpoint)
    assert json.loads((place / "config.json").read_text())["era"] == era
    tensors = torch.load(folder / "model_000010.pt", weights_only=True)
    arrays = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    ids = np.random.default_rng(2).integers(0, 61, 170)
    own = LanguageModel.load(place).logits(torch.from_numpy(ids)[None])[0].numpy()
    sizes = {"heads": 4, "kv_heads": 2, "pattern": "SL", "vocab": 61, "softcap": 15.0}
    expected = logits(arrays, ids, **sizes, **FIXED[era])
    assert own.shape == expected.shape == (170, 61)
    assert np.abs(own - expected).max() < 1e-4 * np.abs(expected).max()


def test_entries_that_no_file_says_are_taken_from_the_user(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "C", steps=(10,))
    ids = torch.arange(40)[None]

    def scored(**given):
        (checkpoint,) = discover([folder], overrides={"architecture": given} if given else None)
        return checkpoint, LanguageModel.load(local_path(checkpoint)).logits(ids)

    usual, other = scored(), scored(softcap="20")
    assert usual[1].abs().max() < 15
    scale = lambda logits, cap: torch.atanh(logits / cap) * cap
    torch.testing.assert_close(scale(usual[1], 15.0), scale(other[1], 20.0), atol=1e-3, rtol=1e-3)
    assert other[0].architecture_given == (("softcap", "20"),)
