"""Oracle: a calibration pass that goes on half-way gives what one gives that begins anew, and does less."""

import numpy as np
import pytest
import torch

from ptq_eval.measure import calibration, halfway, kept
from ptq_eval.measure import sweep as sweeping
from ptq_eval.measure.halfway import Halfway
from ptq_eval.measure.kept import Sums
from ptq_eval.models.language_model import LanguageModel
from tests.measure.test_kept import killed_at, records
from tests.support import models
from tests.support.moe import ExpertsConfig
from tests.support.steps import planned

GRID = {"quantizers": ("gptq", "awq"), "bits": (2, 4)}


@pytest.fixture
def always(monkeypatch):
    """Everything is kept, however short the work, and at once."""
    monkeypatch.setattr(sweeping, "_SHORT", 0.0)
    monkeypatch.setattr(kept, "SECONDS", -1.0)


@pytest.fixture(params=[1, 3])
def chunked(request, monkeypatch):
    """Calibration in one chunk, and in several."""
    tokens = {1: 2**14, 3: 32}[request.param]
    monkeypatch.setattr(calibration, "_CHUNK_TOKENS", {"cpu": tokens})


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox", "qwen3"])
def test_killed_within_a_pass_a_sweep_goes_on_half_way_to_the_same_records(
    architecture,
    saved,
    small,
    tmp_path,
    monkeypatch,
    always,
    chunked,
):
    work = planned(saved(architecture).parent, **{**small, **GRID}).workloads[0]
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "_SHORT", float("inf"))
        expected = records(work)
    total = killed_at(monkeypatch, work, tmp_path / "whole", 0)
    tried, own = [], Halfway._goes_on_from
    monkeypatch.setattr(Halfway, "_goes_on_from", lambda self, block: tried.append(own(self, block)) or tried[-1])
    for moment in np.linspace(2, total // 2, 6).astype(int).tolist():
        folder = tmp_path / f"at {moment}"
        killed_at(monkeypatch, work, folder, moment)
        assert records(work, folder) == expected, f"killed at part {moment} of {total}"
    assert any(tried), "no pass went on half-way"


def states(model, ids, block):
    """What the block of this number is handed, in one chunk."""
    found = []
    hook = list(halfway.blocks(model.module))[block - 1].register_forward_hook(lambda *a: found.append(a[2]))
    model.hidden(ids)
    hook.remove()
    return {"0": found[0]}


def place(model, tmp_path, ids, block):
    sums = Sums(tmp_path / "states.safetensors")
    sums.keep(states(model, ids, block), block, last=True)
    groups = calibration.input_groups(model, ids)
    return Halfway(model, groups, [ids], sums), groups


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox", "qwen3", "experts"])
def test_what_comes_out_is_the_same(architecture, tmp_path):
    model = LanguageModel(models.build(ExpertsConfig() if architecture == "experts" else architecture))
    ids = models.ids(rows=3)
    whole = model.hidden(ids)
    made, groups = place(model, tmp_path, ids, 1)
    with made.passing(lambda index: True) as first:
        assert 0 < first < len(groups)
        assert torch.equal(model.hidden(ids), whole)
    assert torch.equal(model.hidden(ids), whole)
    assert not (tmp_path / "states.safetensors").exists()


def test_a_model_that_takes_more_from_earlier_blocks_begins_anew(tmp_path):
    """Its second block also adds what the first one was handed."""
    model = LanguageModel(models.build("llama"))
    first, second = halfway.blocks(model.module)
    handed = []
    first.register_forward_pre_hook(lambda _module, args: handed.append(args[0]))
    second.register_forward_hook(lambda _module, _args, out: out + handed[-1] * (1 + len(handed) % 2))
    made, _ = place(model, tmp_path, models.ids(rows=2), 1)
    with made.passing(lambda index: True) as begins:
        assert begins == 0


def test_groups_that_are_not_done_are_not_passed_over(tmp_path):
    model = LanguageModel(models.build("llama"))
    made, _ = place(model, tmp_path, models.ids(rows=2), 1)
    with made.passing(lambda index: index != 1) as first:
        assert first == 0


def test_blocks_that_hand_on_several_things_are_not_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SECONDS", -1.0)
    model = LanguageModel(models.build("gptj"))
    ids, sums = models.ids(rows=2), Sums(tmp_path / "states.safetensors")
    made = Halfway(model, calibration.input_groups(model, ids), [ids], sums)
    with made.passing(lambda index: False):
        made.arrived(0)
        model.hidden(ids)
        made.arrived(2)
        assert sums.parts == 0


def test_states_are_kept_every_so_often_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SECONDS", 1e9)
    model = LanguageModel(models.build("llama"))
    ids, sums = models.ids(rows=2), Sums(tmp_path / "states.safetensors")
    groups = calibration.input_groups(model, ids)
    made = Halfway(model, groups, [ids], sums)
    with made.passing(lambda index: False):
        for index in range(len(groups)):
            made.arrived(index)
        assert sums.parts == 0
