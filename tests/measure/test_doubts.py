"""Contract and oracle: what is no quantization is noticed, by quantizers that fail in one way each; the others are not
doubted."""

import copy
import json
from importlib.metadata import EntryPoint

import pandas as pd
import pytest
import torch

import ptq_eval
import quantizers
from ptq_eval import plugins
from ptq_eval.measure import doubts
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.doubts import BAND, Plausibility
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Doubt
from ptq_eval.report.run.doubts import _TEXTS, doubt_text, doubt_texts
from ptq_eval.results.load import load
from quantizers import LayerStats, Scheme, get_quantizer
from tests.support import models as core_models
from tests.support.steps import measured
from tests.theory.support import build, windows

OWN = {"idle": "Idle", "still": "Still", "shuffler": "Shuffler", "mirror": "Mirror"}


@pytest.fixture(autouse=True)
def plug_ins(monkeypatch):
    """The quantizers that fail, as if a package provided them."""
    group = "ptq_eval.quantizers"
    points = {name: EntryPoint(name, f"tests.support.quantizers:{cls}", group) for name, cls in OWN.items()}
    every = {**quantizers.available_quantizers(), **points}
    real = plugins._points
    monkeypatch.setattr(plugins, "_points", lambda kind: every if kind == "quantizers" else real(kind))
    monkeypatch.setattr(quantizers, "available_quantizers", lambda: every)


@pytest.fixture(scope="module")
def options(small):
    return {**small, "calib_windows": 8, "eval_windows": 16}


def found(trajectory, settings, **changes):
    """{(quantizer, bits): {kind: doubt}} of the first checkpoint, and the records."""
    _, records = measured(trajectory, **{**settings, **changes})
    kinds = {
        (m.trial.quantizer, m.trial.bits): {Doubt(d["kind"]): d for d in m.details.get("doubts", ())}
        for m in records
        if m.trial.scheme is not None
    }
    return kinds, {(m.trial.quantizer, m.trial.bits): m for m in records}


def test_sound_methods_are_not_doubted(trajectory, options):
    kinds, records = found(trajectory, options, quantizers=("rtn", "gptq", "awq"), bits=(2, 3, 4, 8), formats="nf4")
    assert not any(kinds.values())
    for (name, bits), m in records.items():
        ratio = m.details.get("second_order_ratio")
        assert bits == 8 or name == "none" or BAND[0] < ratio < BAND[1]


def test_a_method_that_rounds_is_noticed(trajectory, options):
    kinds, records = found(trajectory, options, quantizers=("rtn", "idle"))
    for bits in (3, 4):
        assert kinds["rtn", bits] == {}
        doubt = kinds["idle", bits][Doubt.LIKE_ROUNDING]
        assert doubt["layers"] == doubt["of"] == 14
        assert records["idle", bits].status == "ok"
        assert records["idle", bits].nll == records["rtn", bits].nll


def test_unchanged_weights_are_a_failure_if_all_are_and_a_doubt_if_some_are(trajectory, options):
    kinds, records = found(trajectory, options, quantizers=("still",), bits=(4,))
    assert records["still", 4].status == "failed"
    assert "left all weights unchanged" in records["still", 4].message
    assert Doubt.UNCHANGED in kinds["still", 4]
    assert "14 of 14 layers" in doubt_text(kinds["still", 4][Doubt.UNCHANGED])
    some, records = found(trajectory, options, quantizers=("still",), bits=(4,), options={"still": {"every": False}})
    assert records["still", 4].status == "ok"
    assert some["still", 4][Doubt.UNCHANGED]["layers"] < some["still", 4][Doubt.UNCHANGED]["of"]


def test_weights_in_another_order_are_no_rounding(trajectory, options):
    kinds, _ = found(trajectory, options, quantizers=("shuffler",), bits=(2, 4))
    assert kinds["shuffler", 4][Doubt.LARGE_ERROR]["ratio"] > doubts.MAX_ERROR
    assert kinds["shuffler", 4][Doubt.LARGE_ERROR]["layers"] == 14
    assert Doubt.LIKE_ROUNDING not in kinds["shuffler", 4]


def on_a_grid(bits=4, size=16):
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    return get_quantizer("rtn").quantize(weight, Scheme(bits, size)).dequantize()


@pytest.mark.parametrize("exact", ["exactly", "nearly"])
def test_weights_that_rounding_leaves_where_they_are_make_no_other_error_large(exact):
    """The error on another grid over that of RTN is infinite, or millions, and still that of a method that rounds."""
    scheme, own = Scheme(4, 16), on_a_grid()
    if exact == "nearly":
        own = own * (1 + 1e-6)
    rounded = get_quantizer("rtn").quantize(own, scheme).dequantize()
    layer = get_quantizer("rtn").quantize(own, Scheme(4, 16, symmetric=True)).dequantize()
    assert float((layer - own).norm()) > 1e3 * float((rounded - own).norm())
    witness = doubts.Witness()
    witness.weight("layer", own, layer, scheme)
    assert witness.doubts() == []
    witness.weight("other", own, own.flip(1), scheme)
    assert [doubt["first"] for doubt in witness.doubts() if doubt["kind"] == Doubt.LARGE_ERROR] == ["other"]


@pytest.mark.parametrize("scheme", [Scheme(2, 16), Scheme(4, 16), Scheme(4, None, symmetric=True), Scheme.of("nf4")])
def test_weights_that_took_more_bits_than_the_scheme_are_noticed(scheme):
    own = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    witness = doubts.Witness()
    finer = Scheme(scheme.bits + 3, 16)
    witness.weight("finer", own, get_quantizer("rtn").quantize(own, finer).dequantize(), scheme)
    if scheme.format == "int":
        clipped = get_quantizer("rtn", mse=True).quantize(own, scheme).dequantize()
        witness.weight("clipped", own, clipped, scheme)
    assert [(doubt["kind"], doubt["first"]) for doubt in witness.doubts()] == [(Doubt.SMALL_ERROR, "finer")]
    on_grid = get_quantizer("rtn").quantize(own, scheme).dequantize()
    witness = doubts.Witness(compared=False)
    witness.weight("exact", on_grid, on_grid, scheme)
    assert Doubt.SMALL_ERROR not in [doubt["kind"] for doubt in witness.doubts()]


def test_a_model_far_from_the_original_one_is_implausible(trajectory_of_example):
    _, records = trajectory_of_example
    (m,) = [m for m in records if m.trial.quantizer == "mirror"]
    (doubt,) = [d for d in m.details["doubts"] if d["kind"] == Doubt.IMPLAUSIBLE]
    assert doubt["ratio"] == m.details["second_order_ratio"] < BAND[0]
    (sound,) = [m for m in records if m.trial.quantizer == "rtn"]
    assert "doubts" not in sound.details


@pytest.fixture
def trajectory_of_example(plug_ins):
    """A trained checkpoint: of random weights, any others are as good."""
    return measured(
        "examples/trajectory/llama-40k/checkpoint-980",
        quantizers=("rtn", "mirror"), bits=(2,), seq_len=64, eval_windows=8, calib_windows=8, device="cpu",
    )  # fmt: skip


def test_few_tokens_are_counted(trajectory, options):
    kinds, _ = found(trajectory, options, quantizers=("rtn", "gptq"), bits=(4,), calib_windows=1, calib_length=20)
    doubt = kinds["gptq", 4][Doubt.FEW_TOKENS]
    assert doubt["tokens"] == 20 < doubt["inputs"]
    assert kinds["rtn", 4] == {}


def test_inputs_that_are_all_zero_are_noticed(tokenizer, options, tmp_path):
    model = core_models.build("llama", seed=0)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.zero_()
    core_models.save(tmp_path / "run" / "checkpoint-100", model, tokenizer, tokens=1000)
    kinds, _ = found(tmp_path / "run", options, quantizers=("idle",), bits=(4,))
    doubt = kinds["idle", 4][Doubt.NO_STATISTICS]
    assert doubt["layers"] == 4  # the three after the norm, and the one after values that are zero
    assert doubt["first"].startswith("model.layers.1.self_attn")


def test_weights_that_are_not_used_are_noticed(trajectory, options, monkeypatch):
    """The evaluation forgets to put a variant's weights in place."""
    monkeypatch.setattr(LanguageModel, "carrying", lambda self, parameters: self.restoring())
    kinds, _ = found(trajectory, options, quantizers=("rtn",), bits=(4,))
    assert kinds["rtn", 4][Doubt.NO_EFFECT]["windows"] == 16


def test_a_package_whose_weights_move_is_noticed():
    kinds = [d["kind"] for d in doubts.of_backend({"after_forward": 0.01, "after_reload": 0.02})]
    assert kinds == [Doubt.MOVES, Doubt.RELOADS_DIFFERENTLY]
    assert doubts.of_backend({"after_forward": 1e-4, "after_reload": None}) == []
    assert doubts.of_backend({}) == []


def test_the_report_and_the_table_say_it(trajectory, options, tmp_path):
    result = ptq_eval.run(trajectory, tmp_path / "out", **{**options, "quantizers": ("rtn", "idle"), "bits": (4,)})
    (text,) = [w for w in result.fit["warnings"] if w.startswith("idle, 3 of 3 measurements: ")]
    assert "the method had no effect" in text
    assert text in (tmp_path / "out" / "report.md").read_text()
    rows = result.table[result.table["quantizer"] != "none"].set_index("quantizer")
    assert rows.loc["rtn", "doubts"].isna().all()
    assert rows.loc["idle", "doubts"].str.contains("like_rounding").all()
    assert list(doubt_texts(load(tmp_path / "out").frame)) == [text]
    assert list(doubt_texts(result.table.drop(columns=["doubts", "second_order_ratio"]))) == []


def test_what_is_true_of_several_methods_and_formats_is_said_once():
    def rounded(layers):
        return json.dumps(doubts.of_rounded(["embed"] * layers, 16))

    rows = [("gptq", "int", rounded(1)), ("gptq", "nvfp4", rounded(1)), ("awq", "int", rounded(2)), ("awq", "q4_k", "")]
    table = pd.DataFrame(rows, columns=["quantizer", "format", "doubts"])
    table = table.assign(bits=4, group_size=32, symmetric=False, calibration="shared", options="")
    once, other = doubt_texts(table)
    assert once.startswith("gptq, gptq nvfp4, 2 of 2 measurements: the weights of 1 of 16 layers (embed)")
    assert other.startswith("awq, 1 of 1 measurement: the weights of 2 of 16 layers")


def test_every_doubt_has_a_sentence():
    assert set(_TEXTS) == set(Doubt)


def divergence(model, ids, weights, part):
    """KL(full ‖ with a part of the error), nats per token, in float64."""
    exact = copy.deepcopy(model.module).double()
    names = {f"{name}.weight": (model.weight(name).double(), weight.double()) for name, weight in weights.items()}
    logs = []
    for t in (0.0, part):
        moved = {name: own + t * (new - own) for name, (own, new) in names.items()}
        out = torch.func.functional_call(exact, moved, kwargs={"input_ids": ids, "use_cache": False})
        logs.append(out.logits[:, :-1].log_softmax(-1))
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


@pytest.mark.parametrize(("bits", "part"), [(2, 0.25), (4, 0.25), (4, 1e-3)])
def test_the_second_order_is_that_of_a_part_of_the_error(bits, part):
    """Oracle: the divergence in float64; of a thousandth of the error too, where the second order holds."""
    model, ids = build(), windows(8)
    variant = Variant(get_quantizer("rtn"), Scheme(bits, 4))
    quantize(model, [variant], None)
    weights = {name: weight.clone() for name, weight in variant.weights.items()}
    evaluator = Evaluator(model, ids)
    ((seen, scores),) = evaluator.score([weights])
    second = Plausibility(model, evaluator)
    ratio = second.ratio(dict(weights), seen, scores)
    chosen = ids[second.windows]
    originals = {name: weight.clone() for name, weight in variant.weights.items()}
    wanted = divergence(model, chosen, originals, 1.0) / (divergence(model, chosen, originals, part) / part**2)
    assert ratio == pytest.approx(wanted, rel=1e-3 if part == doubts.PART else 0.1)


@pytest.mark.parametrize("scheme", [Scheme(2, 8), Scheme(8, None), Scheme.of("nvfp4"), Scheme.of("nf4", 32)])
def test_a_sample_of_rows_decides_as_all_rows_do(scheme):
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(200, 32, generator=generator)
    rounded = get_quantizer("rtn").quantize(own, scheme).dequantize()
    cases = {"alike": rounded, "still": own * (1 + 1e-4), "large": own.flip(1), "other": rounded.clone()}
    cases["other"][150] = own[150] + 0.9 * (rounded[150] - own[150])  # outside the sample for integers
    for name, new in cases.items():
        witness = doubts.Witness()
        witness.weight("layer", own, new, scheme)
        assert [bool(witness.alike), bool(witness.still)] == [name in ("alike", "other"), name == "still"], name
        assert bool(witness.large) == (name == "large" and scheme.bits > 2), name


def test_statistics_are_judged_by_their_tokens():
    witness, x = doubts.Witness(layers=2), torch.randn(7, 8)
    witness.statistics(["a", "b"], LayerStats.from_inputs(x))
    witness.statistics(["c"], LayerStats.from_inputs(torch.randn(8, 8)))
    assert witness.few == {"a": (7, 8), "b": (7, 8)}
    witness.statistics(["d"], LayerStats(8))
    assert witness.empty == ["d"]
