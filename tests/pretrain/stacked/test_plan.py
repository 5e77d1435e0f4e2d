"""Contract and oracle: which combinations of a study file are runs, and which runs are refused before they start."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ptq_eval.errors import OptionError, TextTooShortError
from ptq_eval.pretrain.stacked.options import RunOptions
from ptq_eval.pretrain.stacked.plan import Run, points
from ptq_eval.pretrain.stacked.study import read, train
from ptq_eval.pretrain.stacked.trainer import Material

GRID = """
text = "{text}"
[run]
size = "8x1"
vocab = 300
context = 16
batch_size = 4
warmup = 4
validation_windows = 8
ratios = [4]
"""


def planned_by(tmp_path, text, lines):
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "study.toml").write_text(GRID.format(text=tmp_path / "text.txt") + lines)
    return read(tmp_path / "study.toml")


WITHOUT_EFFECT = {
    "weights_per": "tensor", "activations_per": "token", "kv_per": "head", "low_precision_share": 0.25, "decay": 0.5,
    "lawa_every": 7, "data_seed": 3,
}  # fmt: skip
"""Of a run in full precision at a constant rate, without averages, whose seed is 3."""


@pytest.mark.parametrize(
    ("axes", "runs"),
    [
        ('weights = ["full", 4]\nweights_per = ["channel", "tensor"]\nlow_precision_share = [1.0, 0.25]', 1 + 4),
        ('weights = ["full", 4]\nactivations_per = ["tensor", "token"]', 2),
        ('kv = ["full", 4]\nkv_per = ["tensor", "head", "token"]\nactivations = ["full", 8]', 2 * (1 + 3)),
        ('schedule = ["constant", "wsd", "inverse-sqrt"]\ndecay = [0.1, 0.2]', 4),
        ("lawa = [[], [2]]\nlawa_every = [5, 7]", 3),
        ("seed = [0, 1]\ndata_seed = [0, 1]", 4),
        ("seed = 3\n[[grid]]\nseed = 3\ndata_seed = 3", 1),
    ],
)
def test_options_without_effect_plan_no_run_of_their_own(tmp_path, text, axes, runs):
    planned = planned_by(tmp_path, text, f"[[grid]]\n{axes}\n")
    assert len(planned.runs) == runs
    content = tomllib.loads((tmp_path / "study.toml").read_text())
    every = [options for grid in content["grid"] for options, _ in points(grid, content["run"])]
    first = {}
    for options in every:
        first.setdefault(options.effective, options)
    # the first keeps its name, which says what the file does
    assert [run.name for run in planned.runs] == [Run(o, planned.options.text[0], ()).name for o in first.values()]


@pytest.mark.slow
def test_oracle_options_without_effect_give_the_same_weights(tmp_path, text):
    plain = planned_by(tmp_path, text, "[[grid]]\nseed = 3\n")
    [base] = plain.runs
    others = [replace(base, options=replace(base.options, **{k: v})) for k, v in WITHOUT_EFFECT.items()]
    assert {run.options.effective for run in others} == {base.options.effective}
    train(replace(plain, runs=(base, *others)), tmp_path / "out")
    found = [load_file(path) for path in sorted((tmp_path / "out").glob("runs/*/trunk/*/model.safetensors"))]
    assert len(found) == 1 + len(others)
    for other in found[1:]:
        assert all(torch.allclose(found[0][key], other[key], atol=1e-6) for key in other)


def test_every_option_that_has_an_effect_is_in_what_makes_a_run():
    used = {"weights": "4", "activations": "8", "kv": "4", "schedule": "wsd", "lawa": (2,), "seed": 5}
    for name, value in WITHOUT_EFFECT.items():
        assert RunOptions(**used, **{name: value}).effective != RunOptions(**used).effective, name


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lawa = [2, 1000]", "lawa averages more snapshots than a run of the study takes | got lawa = 1,000 with lawa"),
        ("lawa = [2]\nlawa_every = 5000", "lawa_every = 5,000"),
        ("warmup = 5000", "warmup is longer than a run of the study | got warmup = 5,000 in "),
    ],
)
def test_what_a_run_never_reaches_is_refused(tmp_path, text, line, said):
    with pytest.raises(OptionError, match=re.escape(said)) as refused:
        planned_by(tmp_path, text, f"[[grid]]\n{line}\n")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("windows", [37, 100_000])
def test_validation_windows_leave_a_batch_of_the_text(tmp_path, text, windows):
    """Of 40 windows, four fill a batch."""
    [run] = planned_by(tmp_path, text, "[[grid]]\n").runs
    material = Material(None, np.arange(16 * 40, dtype=np.int32), "")
    fits = replace(run.options, validation_windows=36)
    assert material.batches(fits).epoch_tokens + material.validation(fits).numel() == 16 * 40
    with pytest.raises(TextTooShortError, match=r"validation_windows leave less .* at most 36 windows") as refused:
        material.batches(replace(run.options, validation_windows=windows))
    assert "\n" not in str(refused.value)
