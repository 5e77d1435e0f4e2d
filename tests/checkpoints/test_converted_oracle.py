"""Formats of training frameworks: their own models' logits, from checkpoints that their own code saved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ptq_eval import plugins
from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.checkpoints.listing import listing
from ptq_eval.models.language_model import LanguageModel

FIXTURES = Path(__file__).parent / "fixtures"
KNOWN = sorted(path.parent.relative_to(FIXTURES).as_posix() for path in FIXTURES.rglob("expected.npz"))


@pytest.mark.parametrize("name", KNOWN)
def test_the_logits_are_those_of_the_frameworks_own_model(name):
    (checkpoint,) = verify_all(discover([FIXTURES / name]))
    assert not checkpoint.fatal, checkpoint.fatal
    assert checkpoint.format == name.partition("/")[0]
    known = np.load(FIXTURES / name / "expected.npz")
    model = LanguageModel.load(local_path(checkpoint))
    logits = model.logits(torch.from_numpy(known["ids"]))[..., : known["logits"].shape[-1]].numpy()
    assert np.abs(logits - known["logits"]).max() < 1e-4 * np.abs(known["logits"]).max()
    assert len(model.matrices()) >= 8


def test_every_reader_is_listed_with_its_status():
    rows = {row["checkpoints"]: row for row in listing()}
    assert set(plugins.names("checkpoints")) < set(rows)
    stored = {path.name for path in FIXTURES.iterdir()}
    converted = {name for name, row in rows.items() if row["status"] == "converted"}
    assert converted - stored == {"neox", "state_dict"}  # which have tests of their own
    assert rows["a GGUF file"]["status"] == "recognised"
    assert all(row["looks like"] for row in rows.values())
