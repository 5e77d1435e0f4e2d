"""Contract and oracle: mixtures of experts, whose experts are modules of their own or refused by name."""

import pytest
import torch

import ptq_eval
from ptq_eval.errors import UnsupportedModelError
from ptq_eval.models.language_model import LanguageModel
from tests.reference.delta import naive_delta
from tests.support import models as core_models
from tests.support.models import LAYERS
from tests.support.moe import ExpertsConfig
from tests.support.steps import measured


def test_fused_experts_are_refused_by_name():
    module = core_models.build("mixtral")
    fused = [name for name, parameter in module.named_parameters() if parameter.dim() == 3]
    if not fused:
        pytest.skip("this release of transformers keeps Mixtral's experts apart")
    assert len(fused) == 2 * LAYERS
    with pytest.raises(UnsupportedModelError) as caught:
        LanguageModel(module, name="mixtral@100")
    message = str(caught.value)
    assert "mixtral@100" in message
    assert all(name in message for name in fused)


def test_a_run_on_fused_experts_is_refused_before_anything_is_loaded(tmp_path, tokenizer, small):
    module = core_models.build(ExpertsConfig(fused=True))
    core_models.save(tmp_path / "run" / "checkpoint-1", module, tokenizer)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.up, model\.layers\.1\.up"):
        ptq_eval.run(tmp_path / "run", tmp_path / "out", **small)
    assert not (tmp_path / "out").exists()


class TestExperts:
    """A mixture of experts of nn.Linear modules, one of which no token reaches."""

    @pytest.fixture(scope="class")
    def records(self, tmp_path_factory, tokenizer, small):
        root = tmp_path_factory.mktemp("experts")
        module = core_models.build(ExpertsConfig(cold=1))
        with torch.no_grad():  # a loss near that of a guess: models far above it are refused
            module.get_output_embeddings().weight.mul_(0.1)
        core_models.save(root / "checkpoint-1", module, tokenizer)
        work, records = measured(root, **{**small, "quantizers": ("rtn", "gptq", "awq"), "bits": (2,)})
        return root, work, {record.trial.quantizer: record for record in records}

    def test_experts_are_quantized_and_gates_are_not(self):
        description = LanguageModel(core_models.build(ExpertsConfig())).describe()
        parts = ["mix", *(f"experts.{e}.{w}" for e in range(3) for w in ("w1", "w3", "w2"))]
        assert set(description["quantized"]) == {f"model.layers.{i}.{part}" for i in range(2) for part in parts}
        gates = [entry["name"] for entry in description["excluded"] if entry["reason"] == "gate"]
        assert gates == ["model.layers.0.gate.weight", "model.layers.1.gate.weight"]

    @pytest.mark.parametrize("quantizer", ["gptq", "awq"])
    def test_an_expert_without_tokens_stays_in_full_precision_and_is_counted(self, records, quantizer):
        record = records[2][quantizer]
        cold = {f"model.layers.{i}.experts.2.{w}" for i in range(2) for w in ("w1", "w3", "w2")}
        assert record.status == "partial"
        assert set(record.details["layers_skipped"]) == cold
        assert set(record.details["layers_skipped"].values()) == {"no calibration token reached it"}
        assert record.details["layers"] == 20 - len(cold)
        assert record.message.startswith("6 layers left in full precision: model.layers.0.experts.2.")
        assert len(record.nll) == len(records[1].evaluation.ids)

    def test_a_quantizer_without_calibration_takes_them_all(self, records):
        record = records[2]["rtn"]
        assert (record.status, record.details["layers"], record.details["layers_skipped"]) == ("ok", 20, {})

    def test_delta_equals_naive_code(self, records):
        root, work, found = records
        names = list(LanguageModel.load(root / "checkpoint-1").linears())
        windows = torch.tensor(work.evaluation.ids, dtype=torch.long)
        _, delta = naive_delta(root / "checkpoint-1", windows, names, 2, 16)
        assert found["rtn"].loss - found["none"].loss == pytest.approx(delta, abs=1e-6)
