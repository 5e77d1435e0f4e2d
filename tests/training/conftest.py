"""A model that trains in a second, with the real Trainer and with a plain loop."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import VOCAB, build


@pytest.fixture(scope="session")
def quick(texts):
    """Options of a monitor that measures a checkpoint in a second."""
    return {
        "quantizers": "rtn", "bits": 3, "group_size": 16, "seq_len": 32, "eval_windows": 8, "calib_windows": 4,
        "eval_text": texts.evaluation, "calib_text": texts.calibration, "bootstrap": 10, "every": 0.1,
    }  # fmt: skip


@pytest.fixture
def model():
    return build("llama", seed=3)


@pytest.fixture(scope="session")
def data():
    ids = torch.randint(0, VOCAB, (64, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]
