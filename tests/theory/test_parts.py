"""Contract and oracle: damage by part, on tiny models and on a shipped checkpoint."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from ptq_eval.jobs import sensitivity as job
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.report.parts import figure
from ptq_eval.theory import ALL, REMAINDER
from ptq_eval.theory.parts import parts_of, rows
from quantizers import Scheme, get_quantizer
from tests.support import models as core_models
from tests.support.models import matrix

TRAJECTORY = Path(__file__).resolve().parents[2] / "examples" / "trajectory" / "llama-40k"
FEW = {"by": "part", "steps": "last", "bits": (3,), "eval_windows": 8, "calib_windows": 8, "device": "cpu"}


def whole(architecture, **changes):
    module = core_models.build(architecture, **changes)
    return LanguageModel(module, include_head=True, include_embedding=True)


@pytest.mark.parametrize(
    ("architecture", "ends"),
    [
        ("llama", ["embedding and head"]), ("gpt2", ["embedding and head"]), ("opt", ["embedding and head"]),
        ("gpt-neox", ["embedding", "head"]), ("qwen3", ["embedding", "head"]), ("gptj", ["embedding", "head"]),
    ],
)  # fmt: skip
def test_every_matrix_is_in_one_part(architecture, ends):
    model = whole(architecture)
    parts = parts_of(model)
    assert set(parts) == {*ends, "attention", "mlp"}
    assert sorted(name for names in parts.values() for name in names) == sorted(model.matrices())
    assert all("attn" in name or "attention" in name for name in parts["attention"])
    assert not any("attn" in name or "attention" in name for name in parts["mlp"])


@pytest.mark.parametrize("tied", [True, False])
def test_each_part_is_what_copying_its_weights_into_a_model_gives(tied):
    model, ids = whole("llama", tie_word_embeddings=tied), core_models.ids(8)
    variant = Variant(get_quantizer("rtn"), Scheme(3, 16), layers={})
    quantize(model, [variant], None)
    (found,) = rows(model, ids, [variant])
    parts = parts_of(model)
    assert [row["part"] for row in found] == [*parts, ALL, REMAINDER]

    def losses(names):
        other = core_models.build("llama", tie_word_embeddings=tied)
        with torch.no_grad():
            for name in names:
                matrix(other.get_submodule(name)).copy_(variant.weights[name])
            logits = other(input_ids=ids).logits[:, :-1]
        return cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1).double().numpy()

    plain = losses(())
    moved = {part: losses(names) - plain for part, names in {**parts, ALL: tuple(model.matrices())}.items()}
    moved[REMAINDER] = moved[ALL] - sum(moved[part] for part in parts)
    for row in found:
        own = moved[row["part"]]
        assert row["delta"] == pytest.approx(own.mean(), abs=2e-6)
        assert row["delta_se"] == pytest.approx(own.std(ddof=1) / np.sqrt(len(own)), rel=0.01, abs=2e-6)


def test_bytes_are_those_of_the_codes():
    model = whole("llama")
    variant = Variant(get_quantizer("rtn"), Scheme(4, 16), layers={})
    quantize(model, [variant], None)
    (found,) = rows(model, core_models.ids(2), [variant])
    for row in found[:-1]:
        assert row["bits_per_weight"] == 4 + 20 / 16
        assert row["bytes_saved"] == row["weights"] * (16 - 5.25) / 8
    assert found[-2]["bytes_saved"] == sum(row["bytes_saved"] for row in found[:-2])
    assert found[-1]["bytes_saved"] == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory, whole_pictures):
    whole_pictures.update(("png", "pdf"))
    out = tmp_path_factory.mktemp("parts") / "out"
    record, problems = job.sensitivity(TRAJECTORY, out, quantizers=("rtn", "gptq"), **FEW)
    assert problems == []
    return out, record


@pytest.mark.slow
def test_files_and_what_they_say(made):
    out, record = made
    table = pd.read_csv(out / "parts.csv")
    assert len(table) == 2 * 5
    assert set(table["part"]) == {"embedding and head", "attention", "mlp", ALL, REMAINDER}
    text = (out / "parts.md").read_text()
    assert "gptq, 3 bits: `model.embed_tokens` was rounded to nearest" in text
    for kind in ("png", "pdf", "csv"):
        assert (out / "figures" / f"parts.{kind}").stat().st_size > 500
    explained = (Path(__file__).resolve().parents[2] / "docs" / "theory.md").read_text()
    for column in table:
        assert f"`{column}`" in explained, column
    assert record["settings"]["include_embedding"]


def test_a_single_bit_width_shows_every_line_of_the_figure(made):
    """A line of one point has only its marker."""
    out, _ = made
    table = figure.data(json.loads((out / "parts.json").read_text()))
    drawn = figure.draw(table[table["bits"] == table["bits"].iloc[0]]).axes[0]
    assert all(line.get_marker() != "None" for container in drawn.containers for line in container.lines[:1])
    assert len(drawn.containers) == len(set(table["part"]))


@pytest.mark.slow
def test_the_job_goes_on_where_it_was(made, monkeypatch):
    out, _ = made
    monkeypatch.setattr(job, "part_rows", lambda *_, **__: pytest.fail("measured again"))
    again, _ = job.sensitivity(TRAJECTORY, out, quantizers=("rtn", "gptq"), **FEW)
    assert json.dumps(again["checkpoints"]) == json.dumps(json.loads((out / "parts.json").read_text())["checkpoints"])


def test_by_layer_needs_layers_with_inputs(tmp_path):
    with pytest.raises(job.OptionError, match="an embedding has no inputs"):
        job.sensitivity(TRAJECTORY, tmp_path, include_embedding=True, device="cpu")
