"""Contract: from options and checkpoints to trials and their keys."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import ptq_eval
from ptq_eval.errors import (
    GroupSizeError,
    MissingTokenizerError,
    OptionError,
    TextTooShortError,
    TokenRangeError,
)
from ptq_eval.records import Checkpoint, Measurement, Problem, Scheme, Trial
from tests.support import models as core_models
from tests.support.steps import planned

CHECKPOINT = Checkpoint(run="a", step=100, tokens=1000, params=10, location="/here", weights_sha="w", revision="r")
TRIAL = Trial(CHECKPOINT, "digest", "protocol", "gptq", "1", {"damping": 0.01}, Scheme(4, 128), "sequential", "calib")
CHANGES = {
    "corpus": "other",
    "protocol": "other",
    "quantizer": "awq",
    "quantizer_version": "2",
    "options": {"damping": 0.02},
    "scheme": Scheme(3, 128),
    "calibration": "shared",
    "calibration_corpus": "other",
    "dtype": "bfloat16",
    "device": "cuda",
    "include_head": True,
    "include_embedding": True,
    "stop": {"precision": 0.02},
    "activations": {"format": "int8", "per": "token"},
    "cache": {"rope": "after"},
    "task": {"name": "arc_easy"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_that_changes_the_number_changes_the_key(name):
    assert replace(TRIAL, **{name: CHANGES[name]}).key() != TRIAL.key()


def test_every_field_of_a_trial_is_in_its_identity():
    """The sample is, as the protocol and the digest of its windows, and so is the draw of calibration windows."""
    from dataclasses import fields

    assert {f.name for f in fields(Trial)} == CHANGES.keys() | {"checkpoint", "sample", "calibration_draw"}


@pytest.mark.parametrize("scheme", [Scheme(4, 64), Scheme(4, None), Scheme(4, 128, True), Scheme(4, 128, False, "fp")])
def test_every_part_of_the_scheme_is_in_the_key(scheme):
    assert replace(TRIAL, scheme=scheme).key() != TRIAL.key()


@pytest.mark.parametrize("change", [{"weights_sha": "x"}, {"run": "b"}, {"step": 200}, {"revision": "s"}])
def test_weights_and_place_are_in_the_key(change):
    assert replace(TRIAL, checkpoint=replace(CHECKPOINT, **change)).key() != TRIAL.key()


@pytest.mark.parametrize(
    "change",
    [
        {"location": "/there"},
        {"tokens": 5, "tokens_source": "user"},
        {"params": 5},
        {"problems": (Problem("x", "y"),)},
        {"learning_rate": 1.0, "schedule_phase": "decay"},
    ],
)
def test_paths_and_what_is_only_known_about_a_checkpoint_are_not_in_the_key(change):
    assert replace(TRIAL, checkpoint=replace(CHECKPOINT, **change)).key() == TRIAL.key()


def test_the_key_does_not_depend_on_the_order_of_options():
    one, two = (replace(TRIAL, options=dict(o)) for o in ([("a", 1), ("b", 2)], [("b", 2), ("a", 1)]))
    assert one.key() == two.key()


def test_records_come_back_from_json_bit_by_bit():
    import json

    m = Measurement(TRIAL, (0.1, 1 / 3, 1e-300), (7, 7, 7), (9, 9, 9), (1e-17, 2.0, 3.0), (1, 2, 3), 4.25)
    again = Measurement.from_dict(json.loads(json.dumps(m.to_dict())))
    assert again == m
    assert again.trial.key() == TRIAL.key()
    assert Measurement.from_dict({**m.to_dict(), "of a later version": 1}) == m


def test_a_moved_trajectory_has_the_same_keys(trajectory, small, tmp_path):
    moved = shutil.copytree(trajectory, tmp_path / "elsewhere" / trajectory.name)
    keys = [[[t.key() for t in w.trials] for w in planned(root, **small).workloads] for root in (trajectory, moved)]
    assert keys[0] == keys[1]
    assert len({key for work in keys[0] for key in work}) == 3 * (1 + 2 * 2)


def test_the_grid_is_full_precision_first_and_then_quantizers_times_bits(trajectory, small):
    plan = planned(trajectory, **{**small, "quantizers": ("rtn", "gptq", "awq"), "symmetric": True})
    assert [work.checkpoint.step for work in plan.workloads] == [100, 200, 400]
    for work in plan.workloads:
        kinds = [(t.quantizer, t.bits) for t in work.trials]
        assert kinds == [("none", None)] + [(q, b) for q in ("rtn", "gptq", "awq") for b in (3, 4)]
        assert {t.corpus for t in work.trials} == {work.evaluation.digest}
        assert {t.scheme for t in work.trials[1:]} == {Scheme(3, 16, True), Scheme(4, 16, True)}
        assert work.evaluation.ids.shape == (8, 32)
        assert work.calibration.ids.shape == (4, 32)


@pytest.mark.parametrize(
    ("asked", "rtn", "gptq", "awq"),
    [
        ("default", "none", "sequential", "shared"),
        ("shared", "none", "shared", "shared"),
        ("sequential", "none", "sequential", "sequential"),
    ],
)
def test_calibration_is_the_method_s_own_unless_asked_for(trajectory, small, asked, rtn, gptq, awq):
    options = {**small, "quantizers": ("rtn", "gptq", "awq"), "bits": (4,), "calibration": asked}
    work = planned(trajectory, **options).workloads[0]
    assert {t.quantizer: t.calibration for t in work.trials[1:]} == {"rtn": rtn, "gptq": gptq, "awq": awq}
    digests = {t.quantizer: t.calibration_corpus for t in work.trials}
    assert digests["none"] == digests["rtn"] == ""
    assert digests["gptq"] == digests["awq"] == work.calibration.digest


def test_no_calibration_text_is_read_where_none_is_needed(trajectory, small):
    plan = planned(trajectory, **{**small, "quantizers": ("rtn",), "calib_text": "/does/not/exist.txt"})
    assert plan.workloads[0].calibration is None
    assert plan.overlaps == {}


def test_options_of_a_quantizer_enter_the_trial_with_all_defaults(trajectory, small):
    from quantizers import get_quantizer

    plan = planned(trajectory, **{**small, "options": {"gptq": {"act_order": True}}})
    trial = plan.workloads[0].trials[-1]
    assert trial.options == get_quantizer("gptq", act_order=True).options()
    assert trial.options["damping"] == 0.01


@pytest.mark.parametrize("options", [{"gptq": {"actorder": True}}, {"gptq": {"damping": -1}}, {"rtn": {"mse": "x"}}])
def test_wrong_options_of_a_quantizer_are_refused(trajectory, small, options):
    with pytest.raises(OptionError, match=next(iter(*options.values()))):
        planned(trajectory, **{**small, "options": options})


@pytest.mark.parametrize(("context", "expected"), [(64, 64), (4096, 2048)])
def test_default_window_is_the_model_s_context_up_to_2048(tmp_path, tokenizer, small, context, expected):
    model = core_models.build("llama", max_position_embeddings=context)
    core_models.save(tmp_path / "run" / "checkpoint-1", model, tokenizer)
    options = {**small, "quantizers": ("rtn",), "seq_len": None, "eval_windows": 2}
    assert planned(tmp_path / "run", **options).workloads[0].evaluation.seq_len == expected


def test_default_group_size_follows_the_narrowest_row(trajectory, small):
    plan = planned(trajectory, **{**small, "group_size": "auto"})
    assert {t.scheme.group_size for t in plan.workloads[0].trials[1:]} == {32}
    assert plan.models["small"]["group_size"] == 32


def test_shards_share_out_the_checkpoints(trajectory, small):
    parts = [planned(trajectory, **{**small, "shard": (i, 2)}) for i in (1, 2)]
    assert [[w.checkpoint.step for w in part.workloads] for part in parts] == [[100, 400], [200]]
    assert parts[0].models == parts[1].models


def test_requests_that_cannot_be_met_are_refused_before_loading(trajectory, small, texts, tmp_path):
    for wrong, error, words in (
        ({"seq_len": 65}, OptionError, "allowed: 2 to 64"),
        ({"group_size": 33}, GroupSizeError, "33 with rows of 32 columns"),
    ):
        with pytest.raises(error, match=words):
            planned(trajectory, **{**small, **wrong})
    short = tmp_path / "short.txt"
    short.write_text("a few words", encoding="utf-8")
    with pytest.raises(TextTooShortError, match="does not fill one window"):
        planned(trajectory, **{**small, "eval_text": str(short)})


def test_token_ids_outside_of_the_vocabulary_are_refused(trajectory, small, tmp_path):
    np.save(tmp_path / "ids.npy", np.full(1000, core_models.VOCAB))
    with pytest.raises(TokenRangeError, match=f"id {core_models.VOCAB}"):
        ptq_eval.run(trajectory, tmp_path / "out", **{**small, "eval_text": str(tmp_path / "ids.npy")})


def test_without_a_tokenizer_text_is_refused_and_token_ids_are_taken(tmp_path, small):
    core_models.save(tmp_path / "run" / "checkpoint-1", core_models.build("llama"))
    with pytest.raises(MissingTokenizerError, match="run@1 has no tokenizer"):
        ptq_eval.run(tmp_path / "run", tmp_path / "out", **small)
    np.save(tmp_path / "ids.npy", np.arange(1000) % core_models.VOCAB)
    spec = f"{tmp_path}/ids.npy#any"
    plan = planned(tmp_path / "run", **{**small, "eval_text": spec, "calib_text": spec})
    assert plan.workloads[0].evaluation.n_bytes is None
    assert plan.overlaps["run"]["flagged"], "one text for both uses went unnoticed"


def test_a_wrong_checkpoint_is_set_aside_with_its_reason(trajectory, small, tmp_path):
    root = shutil.copytree(trajectory, tmp_path / "small")
    weights = root / "checkpoint-200" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    plan = planned(root, **small)
    assert [w.checkpoint.step for w in plan.workloads] == [100, 400]
    ((checkpoint, error),) = plan.excluded
    assert checkpoint.step == 200
    assert error.exit_code == 12


@pytest.mark.parametrize(
    ("code", "warned"), [("near_identical", True), ("dequantized", True), ("stage_restart", False)]
)
def test_what_a_reader_must_know_of_a_checkpoint_is_a_warning(trajectory, small, code, warned):
    from ptq_eval.checkpoints import discover, verify_all
    from ptq_eval.config.run import RunConfig
    from ptq_eval.measure.trials import make_plan

    first, *others = verify_all(discover([trajectory]))
    plan = make_plan([first.with_problem(code, "so and so"), *others], RunConfig(**small))
    assert (f"{first.name}: so and so" in plan.warnings) == warned
    assert len(plan.workloads) == 1 + len(others)


@pytest.mark.parametrize(("selection", "said"), [("spread", True), ("first", False)])
def test_a_sample_of_the_start_of_a_long_text_says_so(saved, small, monkeypatch, selection, said):
    from ptq_eval.measure import texts

    monkeypatch.setattr(texts, "MAX_CHARACTERS", 3000)
    options = {**small, "quantizers": ("rtn",), "seq_len": 16, "eval_windows": 4, "eval_sample": selection}
    plan = planned(saved("llama").parent, **options)
    assert any("windows are drawn from its first 3,000 characters" in note for note in plan.notes) is said
    (work,) = plan.workloads
    assert work.trials[0].sample == work.evaluation.sample
    assert work.evaluation.sample.selection == selection


def test_samples_are_drawn_by_their_own_seeds(saved, small):
    def drawn(**more):
        work = planned(saved("llama").parent, **{**small, **more}).workloads[0]
        assert work.calibration is not None
        return work.evaluation.digest, work.calibration.digest

    base = drawn()
    assert [a == b for a, b in zip(drawn(eval_seed=1), base)] == [False, True]
    assert [a == b for a, b in zip(drawn(calib_seed=1), base)] == [True, False]
    assert [a == b for a, b in zip(drawn(calib_sample="crops"), base)] == [True, False]
