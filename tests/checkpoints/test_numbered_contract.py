"""Contract and property: sibling folders that differ in a number make one run; others stay apart."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.checkpoints import Overrides, discover
from ptq_eval.checkpoints.numbered import RATE_UNUSED
from ptq_eval.errors import UnsupportedModelError
from tests.checkpoints.support import touch_checkpoint


def found(root, **corrections):
    return [(c.run, c.step, c.tokens) for c in discover([root], overrides=Overrides(**corrections))]


def unused(checkpoints):
    return [p.message for c in checkpoints for p in c.problems if p.code == RATE_UNUSED]


@pytest.mark.parametrize(
    "form",
    [
        "epoch_{}", "step_{}", "iter_{:07d}", "checkpoint-{}-hf", "global_step{}", "{}", "ckpt-{}", "model_{}",
        "step{}-seed-default", "iter_{}/hf", "{}/model", "step{}/model/hf", "global_step_{}/actor/huggingface",
        "{}-hf", "save {}", "stage1-step{}", "checkpoint_{:07d}",
        "foo-step{}-tokens15T", "bar-step-{}k-3T", "ckpt_step_{}", "my-model_{}_steps", "itr-{}",
    ],
)  # fmt: skip
def test_one_run_in_order_of_the_number_and_d_given_once(tmp_path, form):
    for number in (980, 98, 9):
        touch_checkpoint(tmp_path / "mine" / form.format(number))
    (tmp_path / "mine" / "logs_7").mkdir()
    steps = [step * (1000 if "k-3T" in form else 1) for step in (9, 98, 980)]
    assert found(tmp_path / "mine") == [("mine", step, None) for step in steps]
    assert found(tmp_path / "mine", tokens_per_step=100) == [("mine", step, 100 * step) for step in steps]
    assert [tokens for *_, tokens in found(tmp_path / "mine", tokens=[1000, 2000, 3000])] == [1000, 2000, 3000]


NO_DATES = st.integers(0, 10**8).filter(lambda number: not 19_000_000 <= number < 21_000_000)


@given(
    st.text("abcXYZ", min_size=1, max_size=8),
    st.sampled_from(["step", "iter_", "global_step", "checkpoint-", "ckpt-", "epoch_"]),
    st.sampled_from(["", "-hf", "_unsharded", ".model"]),
    st.lists(NO_DATES, unique=True, min_size=2, max_size=4),
    st.integers(1, 9),
)
@settings(max_examples=25, deadline=None)
def test_property_any_stem_and_any_numbers(stem, word, suffix, numbers, width):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        for number in numbers:
            touch_checkpoint(root / f"{stem}-{word}{number:0{width}d}{suffix}")
        checkpoints = discover([root])
        assert [(c.run, c.step) for c in checkpoints] == [("run", number) for number in sorted(numbers)]


def test_stems_and_models_of_another_size_are_runs_of_their_own(tmp_path):
    for name in ("small-step1", "small-step2", "large-step1", "seed1", "seed2"):
        touch_checkpoint(tmp_path / "a" / name)
    for step in (1, 2):
        touch_checkpoint(tmp_path / "b" / f"step{step}")
    touch_checkpoint(tmp_path / "b" / "step3", num_hidden_layers=3)
    for size, layers in ((7, 1), (13, 4)):
        touch_checkpoint(tmp_path / "c" / f"llama-{size}", num_hidden_layers=layers)
        touch_checkpoint(tmp_path / "d" / f"llama-{size}B", num_hidden_layers=layers)
    assert [(run, step) for run, step, _ in found(tmp_path)] == [
        ("a/large-step", 1),
        ("a/seed1", None),
        ("a/seed2", None),
        ("a/small-step", 1),
        ("a/small-step", 2),
        ("b/step-18.592k", 1),
        ("b/step-18.592k", 2),
        ("b/step-27.872k", 3),
        ("c/llama-13", None),
        ("c/llama-7", None),
        ("d/llama-13B", None),
        ("d/llama-7B", None),
    ]


def test_other_checkpoints_beside_a_trainers_run(tmp_path):
    for name in ("checkpoint-1", "checkpoint-2", "epoch_1", "checkpoint-2-hf", "best"):
        touch_checkpoint(tmp_path / "run" / name)
    (tmp_path / "run" / "step_2").symlink_to("checkpoint-2")
    assert [(run, step) for run, step, _ in found(tmp_path / "run")] == [
        ("run", 1),
        ("run", 2),
        ("run", None),
        ("run/checkpoint-hf", 2),
        ("run/epoch", 1),
    ]


def test_two_models_below_each_number(tmp_path):
    for step in (5, 10):
        for name in ("hf", "ema"):
            touch_checkpoint(tmp_path / "run" / f"iter_{step}" / name)
    assert [(run, step) for run, step, _ in found(tmp_path / "run")] == [
        ("run/iter/ema", 5),
        ("run/iter/ema", 10),
        ("run/iter/hf", 5),
        ("run/iter/hf", 10),
    ]
    (member,) = discover([tmp_path / "run" / "iter_10" / "hf"])
    assert (member.run, member.step) == ("run", 10)


def test_later_stages_are_in_order_and_need_tokens_of_their_own(tmp_path):
    for name in ("stage10-step1", "stage2-step5", "stage1-step100", "stage1-step20"):
        touch_checkpoint(tmp_path / "run" / name)
    assert [(step, tokens) for _, step, tokens in found(tmp_path / "run", tokens_per_step=64)] == [
        (20, 1280),
        (100, 6400),
        (5, None),
        (1, None),
    ]


def test_what_is_asked_says_why(tmp_path):
    for folder, name in (("OpenCoder-1.5B-Base", "pretrain_iter_0000005"), ("mine", "stage2-step5"), ("mine", "step5")):
        touch_checkpoint(tmp_path / folder / name)
    notes = {c.revision: c.tokens_note for c in discover([tmp_path])}
    assert "OpenCoder (ask): its card says 4,194,304" in notes["pretrain_iter_0000005"]
    assert "counted from the start of stage2" in notes["stage2-step5"]
    assert notes["step5"].startswith("tokens per step are not known")
    assert "--tokens-per-step" not in notes["stage2-step5"]


def test_epochs_are_no_steps_but_a_trainers_state_says_which(tmp_path):
    for epoch in (1, 2):
        folder = touch_checkpoint(tmp_path / "run" / f"epoch_{epoch}")
        (folder / "trainer_state.json").write_text(f'{{"global_step": {epoch * 500}}}')
        touch_checkpoint(tmp_path / "bare" / f"epoch_{epoch}")
    assert found(tmp_path / "run") == [("run", 500, None), ("run", 1000, None)]
    first = discover([tmp_path / "bare"])[0]
    assert (first.step, first.tokens) == (1, None)
    assert "epochs" in first.tokens_note
    given_once = discover([tmp_path / "bare"], overrides=Overrides(tokens_per_step=70))
    assert [(c.tokens, c.tokens_note) for c in given_once] == [(70, "epoch × 70"), (140, "epoch × 70")]


def test_labels_that_state_tokens_alone(tmp_path):
    for name in ("240b_tokens", "80b_tokens"):
        touch_checkpoint(tmp_path / "run" / name)
    checkpoints = discover([tmp_path / "run"])
    assert [(c.run, c.step, c.tokens) for c in checkpoints] == [("run", None, 80 * 10**9), ("run", None, 240 * 10**9)]
    assert checkpoints[0].tokens_note == "label, ± 1B"


def test_the_batch_that_a_configuration_states(tmp_path):
    path = "logs/global_bs-8_context-16_schedule-WSD"
    for step in (5, 10):
        touch_checkpoint(tmp_path / "run" / "hf" / f"iter_{step:07d}", _name_or_path=path)
    assert found(tmp_path / "run") == [("hf", 5, 640), ("hf", 10, 1280)]


def test_a_repository_for_each_checkpoint_is_one_run(hub_cache):
    for number, label in enumerate(("480k-1T", "955k-token-2T")):
        root = hub_cache(f"TinyLlama/TinyLlama-1.1B-intermediate-step-{label}", {str(number): ["main"]})
    run = "TinyLlama/TinyLlama-1.1B-intermediate-step"
    expected = [(run, 480_000, 480_000 * 2**21), (run, 955_000, 955_000 * 2**21)]
    assert found(root.parent) == expected
    ids = [f"hub:TinyLlama/TinyLlama-1.1B-intermediate-step-{label}" for label in ("955k-token-2T", "480k-1T")]
    assert [(c.run, c.step, c.tokens) for c in discover(ids)] == expected


def test_seeds_on_the_hub_are_runs_of_their_own():
    checkpoints = discover(
        ["hub:allenai/DataDecide-c4-4M@{step5-seed-default,step10-seed-default,step5-seed-large-aux-2}"]
    )
    assert [(c.run.rpartition("/")[2], c.step) for c in checkpoints] == [
        ("step-seed-default", 5),
        ("step-seed-default", 10),
        ("step-seed-large-aux-2", 5),
    ]
    assert checkpoints[0].location == "hub:allenai/DataDecide-c4-4M@step5-seed-default"


def test_numbered_checkpoints_of_another_format_are_found_so_that_they_are_named(tmp_path):
    for step in (1, 2):
        folder = tmp_path / "run" / f"step_{step}" / "pytorch_model_fsdp_0"
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").touch()
    assert [(run, step) for run, step, _ in found(tmp_path / "run")] == [("run", 1), ("run", 2)]
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="adapter"):
        discover([tmp_path / "adapter"])


@pytest.mark.parametrize(
    "form", ["samples-{}", "consumed_samples_{}", "{}pct", "{}%", "epoch-{}.5", "step_{}_000", "{}h", "step-{}.000"]
)
def test_a_run_whose_steps_are_not_certain_is_ordered_and_asked_for(tmp_path, form):
    names = [form.format(number) for number in (5, 50, 100)]
    for name in reversed(names):
        touch_checkpoint(tmp_path / "mine" / name)
    checkpoints = discover([tmp_path / "mine"])
    assert [(c.run, c.step, c.tokens, c.revision) for c in checkpoints] == [("mine", None, None, n) for n in names]
    for words in ("does not say for certain", "--tokens", "trajectory.yaml"):
        assert words in checkpoints[0].tokens_note
    assert [c.tokens for c in discover([tmp_path / "mine"], overrides=Overrides(tokens=(1000, 2000, 3000)))] == [
        1000,
        2000,
        3000,
    ]
    given_ = discover([tmp_path / "mine"], overrides=Overrides(tokens_per_step=70))
    assert {c.tokens for c in given_} == {None}
    (warning,) = unused(given_)
    assert warning == "tokens_per_step is not applied to 3 of 3 checkpoints: which step each is of is not known"
    assert not unused(discover([tmp_path / "mine"], overrides=Overrides(tokens=(1000, 2000, 3000), tokens_per_step=70)))


@pytest.mark.parametrize("form", ["{}", "checkpoint-{}", "ckpt_{}", "save-{}"])
def test_dates_are_no_steps(tmp_path, form):
    for date in ("20240105", "20240212"):
        touch_checkpoint(tmp_path / "mine" / form.format(date))
    assert {step for _, step, _ in found(tmp_path / "mine")} == {None}


def test_a_trainers_state_says_the_step_that_a_name_does_not(tmp_path):
    for share, step in ((10, 98), (100, 980)):
        folder = touch_checkpoint(tmp_path / "mine" / f"{share}pct")
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    assert found(tmp_path / "mine", tokens_per_step=100) == [("mine", 98, 9800), ("mine", 980, 98000)]


@pytest.mark.parametrize(
    "names",
    [
        ("llama-7b", "llama-13b"), ("model-4bit", "model-8bit"), ("fp16", "fp32"), ("width128", "width256"),
        ("batch256", "batch768"), ("seed3", "seed4"), ("lr3e-4", "lr3e-5"), ("rank8", "rank16"),
        ("12-layers", "24-layers"),
    ],
)  # fmt: skip
def test_models_that_differ_in_a_setting_are_runs_of_their_own(tmp_path, names):
    for name in names:
        touch_checkpoint(tmp_path / "mine" / name)
    for settings_of in ({}, {"tokens_per_step": 70}):
        checkpoints = found(tmp_path / "mine", **settings_of)
        assert sorted(checkpoints) == sorted((name, None, None) for name in names)


@pytest.mark.parametrize(
    "names", [("dropout1", "dropout2"), ("foo-7", "foo-13"), ("temp0.5", "temp1.0"), ("5-shot", "10-shot")]
)
def test_a_number_beside_another_word_is_no_step_and_one_line_says_what_to_do(tmp_path, names):
    for name in names:
        touch_checkpoint(tmp_path / "mine" / name)
    assert found(tmp_path / "mine") == [("mine", None, None)] * 2
    first = discover([tmp_path / "mine"])[0]
    for words in ("does not say for certain which step", "--tokens", "trajectory.yaml"):
        assert words in first.tokens_note


@pytest.mark.parametrize("below", ["hf", "model/hf"])
def test_a_number_beside_another_word_may_have_its_model_below(tmp_path, below):
    for name in ("foo-7", "foo-13"):
        touch_checkpoint(tmp_path / "mine" / name / below)
    assert found(tmp_path / "mine") == [("mine", None, None)] * 2
    assert found(tmp_path / "mine", tokens_per_step=70) == [("mine", 7, 490), ("mine", 13, 910)]


@pytest.mark.parametrize("step", ["checkpoint-100", "step100/hf"])
def test_runs_that_differ_in_such_a_number_stay_runs(tmp_path, step):
    for name in ("foo-7", "foo-13"):
        touch_checkpoint(tmp_path / "mine" / name / step)
        touch_checkpoint(tmp_path / "mine" / name / "final")
    assert {run for run, *_ in found(tmp_path / "mine")} == {"foo-7", "foo-13"}


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        ("gs391 gs704 gs1252", (391, 704, 1252)),
        ("cpt-391 cpt-704 cpt-1252", (391, 704, 1252)),
        ("batch391 batch704 batch1252", (391, 704, 1252)),
        ("10k 20k 100k", (10_000, 20_000, 100_000)),
        ("foo-7 foo-13 foo-100", (7, 13, 100)),
        ("e1_s98 e1_s196 e2_s294", (98, 196, 294)),
    ],
)
def test_tokens_per_step_say_that_a_number_is_the_step(tmp_path, names, steps):
    for name in names.split():
        touch_checkpoint(tmp_path / "mine" / name)
    assert found(tmp_path / "mine") == [("mine", None, None)] * 3
    assert "--tokens-per-step if its number is the step" in discover([tmp_path / "mine"])[0].tokens_note
    (tmp_path / "mine" / "trajectory.yaml").write_text("runs: {mine: {tokens_per_step: 70}}")
    for checkpoints in (
        discover([tmp_path / "mine"]),
        discover([tmp_path / "mine"], overrides=Overrides(tokens_per_step=70)),
    ):
        assert [(c.run, c.step, c.tokens) for c in checkpoints] == [("mine", step, 70 * step) for step in steps]
        assert checkpoints[0].tokens_note == "number in the name × 70"
        assert not unused(checkpoints)
    kept = found(tmp_path / "mine", tokens_per_step=70, exclude=[steps[0]])
    assert [step for _, step, _ in kept] == list(steps[1:])


def test_tokens_per_step_are_never_ignored_silently(tmp_path):
    for name in ("500B", "1000B", "1500B"):
        touch_checkpoint(tmp_path / "labels" / name)
    for name in ("stage1-step5", "stage2-step5", "stage2-step6"):
        touch_checkpoint(tmp_path / "stages" / name)
    touch_checkpoint(tmp_path / "one")
    warnings = {
        root: unused(discover([tmp_path / root], overrides=Overrides(tokens_per_step=70)))
        for root in ("labels", "stages", "one")
    }
    assert warnings == {
        "labels": ["tokens_per_step is not applied to 3 of 3 checkpoints: which step each is of is not known"],
        "stages": ["tokens_per_step is not applied to 2 of 3 checkpoints: the steps of a later stage start at 0 again"],
        "one": ["tokens_per_step is not applied to 1 of 1 checkpoints: which step each is of is not known"],
    }
    assert unused(discover([tmp_path / "labels"])) == []


def test_a_number_of_unknown_meaning_is_called_that(tmp_path):
    for number in (1, 2):
        touch_checkpoint(tmp_path / "mine" / f"model_{number}")
    first = discover([tmp_path / "mine"])[0]
    assert first.tokens_note.startswith("the number in the name is taken for the step")
    (first, _) = discover([tmp_path / "mine"], overrides=Overrides(tokens_per_step=70))
    assert first.tokens_note == "number in the name × 70"


def test_one_member_two_folders_below_its_number(tmp_path):
    for step in (98, 980):
        touch_checkpoint(tmp_path / "mine" / f"step{step}" / "model" / "hf")
    (member,) = discover([tmp_path / "mine" / "step98" / "model" / "hf"])
    assert (member.run, member.step, member.revision) == ("mine", 98, "step98/model/hf")
