"""Contract: `trajectory.yaml` and `Overrides` correct what was found, and their mistakes are named."""

import pytest

from ptq_eval.checkpoints import Overrides, discover
from ptq_eval.errors import OptionError, TrajectoryFileError, UnitsError
from tests.checkpoints.support import codes, touch_checkpoint


def test_tokens_per_step_is_the_users(save_run, tmp_path):
    run = save_run(tmp_path / "mine", ["step10", "step20"])
    found = discover([run], overrides=Overrides(tokens_per_step=100, params=7000))
    assert [(c.tokens, c.tokens_source, c.params, c.params_source) for c in found] == [
        (1000, "user", 7000, "user"),
        (2000, "user", 7000, "user"),
    ]
    assert found[0].params_total is not None
    listed = discover([run], overrides=Overrides(tokens=[5000, 9000], exclude=[]))
    assert [c.tokens for c in listed] == [5000, 9000]
    (one,) = discover([run], overrides=Overrides(tokens={20: 7700}, exclude=[10]))
    assert (one.step, one.tokens) == (20, 7700)


def test_trajectory_file_the_nearer_one_wins(save_run, tmp_path):
    root = tmp_path / "study"
    save_run(root / "a", ["step1", "step2"])
    save_run(root / "b", ["step1", "step2", "step3"])
    (root / "trajectory.yaml").write_text(
        "tokens_per_step: 1000\nschedule_phase: constant\nfamily: all\n"
        "runs: {b: {params: 5000, exclude: [3], family: own}}\n"
    )
    (root / "a" / "trajectory.yaml").write_text(
        "tokens: {2: 50k}\noffset_tokens: 1000\nlearning_rate: {1: 0.5}\nschedule_phase: {2: annealed}\n"
    )
    found = discover([root])
    assert [(c.run, c.step, c.tokens) for c in found] == [
        ("a", 1, 2000),
        ("a", 2, 50_000),
        ("b", 1, 1000),
        ("b", 2, 2000),
    ]
    assert [c.schedule_phase for c in found] == ["constant", "annealed", "constant", "constant"]
    assert [c.family for c in found] == ["all", "all", "own", "own"]
    assert [c.learning_rate for c in found] == [0.5, None, None, None]
    assert found[2].params == 5000
    assert found[0].params != 5000
    assert {c.tokens_source for c in found} == {"user"}
    assert discover([root], overrides=Overrides(tokens_per_step=300))[0].tokens == 300


def test_the_runs_file_holds_for_one_of_its_checkpoints(save_run, tmp_path):
    run = save_run(tmp_path / "run", ["step1", "step2"])
    (run / "trajectory.yaml").write_text("tokens: {1: 1k, 2: 2k}")
    (one,) = discover([run / "step2"])
    assert (one.run, one.tokens) == ("run", 2000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tokens_per_steps: 5", "did you mean 'tokens_per_step'"),
        ("tokens_per_step: many", "tokens_per_step in .*trajectory.yaml is not a whole number"),
        ("tokens_per_step: true", "not a whole number"),
        ("tokens_per_step: 0", "too small .* at least 1"),
        ("tokens_per_step: 1e18", r"too large .* remedy: such as 2M$"),
        ("tokens_per_step: 2Mi", "at least 1, written as 2_000_000, 2e6 or 2M .* the number itself: 2097152$"),
        ("tokens_per_step: 4096*512", "the number itself: 2097152$"),
        ("tokens_per_step: 2^21", "the number itself: 2097152$"),
        ("tokens_per_step: 9**999", "written as 2_000_000, 2e6 or 2M$"),
        ("version https://git-lfs.github.com/spec/v1", "a git-lfs pointer, not the file itself .* `git lfs pull`"),
        ("tokens: {1: -5}", "of step 1 is too small"),
        ("tokens: [1M]", "one count per checkpoint"),
        ("tokens: {77: 5M}", "no checkpoint at a step"),
        ("exclude: [1, 99]", "no checkpoint at a step"),
        ("exclude: [1, 2]", "every checkpoint is excluded"),
        ("schedule_phase: warm", "warmup, constant"),
        ("learning_rate: -1", "too small .* at least 0"),
        ("runs: {ruin: {params: 3M}}", "did you mean 'run'"),
        ("runs: {run: {parms: 3}}", "did you mean 'params'"),
        ("runs: 5", "not a mapping"),
        ("- 5", "not a mapping"),
        ("tokens: {1: [", "cannot be read"),
        ("tokens_per_step: 5\nexclude: [1]\ntokens_per_step: 6", "'tokens_per_step' occurs twice.* line 1.*keep one"),
        ("tokens: {1: 10, 2: 20, 1: 30}", "the key '1' occurs twice"),
        ("runs: {run: {params: 3}, run: {params: 4}}", "the key 'run' occurs twice"),
        ("runs: {run: {params: 3, params: 4}}", "the key 'params' occurs twice"),
        ("checkpoints:\n  step1: {step: 1}\n  'step1': {step: 2}", "the key 'step1' occurs twice"),
        ("tokens: {1: 10, 2: 20, 1.0: 30}", "two values for one step.*got 1 "),
        ("tokens: {1: 10, 2: 20, 0: 1, 0e0: 1}", "two values for one step.*got 0 "),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_trajectory_file_mistakes(save_run, tmp_path, text, says):
    run = save_run(tmp_path / "run", ["step1", "step2"])
    (run / "trajectory.yaml").write_text(text)
    with pytest.raises(TrajectoryFileError, match=says) as caught:
        discover([run])
    assert caught.value.exit_code == 26


def test_corrections_by_name_add_to_overrides():
    options = {"tokens_per_step": "2M", "exclude": (7, 9), "params": None, "bits": (4,)}
    found = Overrides.take(options, Overrides(learning_rate={1: 0.5}, exclude=[7, 9]))
    assert found == Overrides(tokens_per_step=2_000_000, exclude=(7, 9), learning_rate={1: 0.5})
    assert options == {"bits": (4,)}
    assert Overrides.take({}) == Overrides()


def test_corrections_that_contradict_each_other_are_refused():
    with pytest.raises(OptionError, match="tokens_per_step contradicts"):
        Overrides.take({"tokens_per_step": 50}, Overrides(tokens_per_step=60))


def test_an_empty_trajectory_file_changes_nothing(trainer_run):
    before = discover([trainer_run])
    (trainer_run / "trajectory.yaml").write_text("# nothing yet\nexclude:\n")
    assert discover([trainer_run]) == before


@pytest.mark.parametrize(
    "text",
    [
        "checkpoints:\n  deep/final: {step: 20k, tokens: 2_000_000}\n  warm: {step: 100, tokens: 1e4}\n",
        "checkpoints:\n- {folder: deep/final, step: 20k, tokens: 2M}\n- {folder: warm, step: 100, tokens: 1e4}\n",
    ],
)
def test_folders_of_any_name_are_listed_with_their_steps(tmp_path, text):
    run = tmp_path / "study" / "run"
    for name in ("warm", "deep/final", "step_7"):
        touch_checkpoint(run / name)
    (run / "trajectory.yaml").write_text(text)
    for root in (run, run.parent):
        found = discover([root])
        assert [(c.run, c.step, c.tokens, c.tokens_source) for c in found] == [
            ("run", 100, 10_000, "user"),
            ("run", 20_000, 2_000_000, "user"),
        ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("checkpoints: {stp1: {step: 1}}", "did you mean 'step1'"),
        ("checkpoints: {step1: 5}", "FOLDER: {step"),
        ("checkpoints: [step1]", "FOLDER: {step"),
        ("checkpoints: [{folder: step1, step: 1}, {folder: step1, step: 2}]", "lists a folder twice"),
        ("checkpoints: {step1: {steps: 5}}", "did you mean 'step'"),
        ("checkpoints: {step1: {step: many}}", "step in .*, step1 is not a whole number"),
        ("checkpoints: {step1: {tokens: -5}}", "tokens in .*, step1 is too small"),
        ("runs: {run: {checkpoints: {step1: {step: 1}}}}", "the run's own folder"),
    ],
)
def test_mistakes_in_a_list_of_folders(tmp_path, text, says):
    touch_checkpoint(tmp_path / "run" / "step1")
    (tmp_path / "run" / "trajectory.yaml").write_text(text)
    with pytest.raises(TrajectoryFileError, match=says):
        discover([tmp_path / "run"])


@pytest.mark.parametrize(
    ("text", "tokens", "rate"),
    [
        ("tokens_per_step: 2e6\nlearning_rate: 3e-4", [2e6, 4e6], 3e-4),
        ("tokens_per_step: 2M\nlearning_rate: 3.0e-4", [2e6, 4e6], 3e-4),
        ("tokens_per_step: 2_000_000\nlearning_rate: .0003", [2e6, 4e6], 3e-4),
        ("tokens_per_step: 2.0e+6\nlearning_rate: {1: 1e-3, 2: 1}", [2e6, 4e6], 1e-3),
        ("tokens: {1: 1e6, 2: 1.5G}", [1e6, 1.5e9], None),
        ("tokens: [10k, 0.02M]", [1e4, 2e4], None),
        ("tokens: {01: 010, 0x: 5}", None, None),
        ("tokens: {01: 01000}\noffset_tokens: 1e3", [1000, None], None),
    ],
)
def test_numbers_as_people_write_them(tmp_path, text, tokens, rate):
    for step in (1, 2):
        touch_checkpoint(tmp_path / "run" / f"step{step}")
    (tmp_path / "run" / "trajectory.yaml").write_text(text)
    if tokens is None:
        with pytest.raises(TrajectoryFileError, match="whole number"):
            discover([tmp_path / "run"])
        return
    found = discover([tmp_path / "run"])
    assert [c.tokens for c in found] == tokens
    assert all(isinstance(c.tokens, int) for c in found if c.tokens is not None)
    assert found[0].learning_rate == rate


def test_a_number_may_name_a_folder(tmp_path):
    touch_checkpoint(tmp_path / "run" / "0100")
    (tmp_path / "run" / "trajectory.yaml").write_text("checkpoints: {0100: {step: 0100, tokens: 5M}}")
    assert [(c.step, c.tokens, c.revision) for c in discover([tmp_path / "run"])] == [(100, 5_000_000, "0100")]


def test_numbers_in_python():
    written = Overrides(tokens_per_step="2M", tokens=["1e3", 2e3], params="1.1B", exclude=["5k"])
    assert (written.tokens_per_step, list(written.tokens or ())) == (2_000_000, [1000, 2000])
    assert (written.params, list(written.exclude)) == (1_100_000_000, [5000])


def test_corrections_may_be_a_mapping(save_run, tmp_path):
    run = save_run(tmp_path / "mine", ["step10", "step20"])
    assert [c.tokens for c in discover([run], overrides={"tokens_per_step": 100})] == [1000, 2000]
    assert Overrides.take({"params": 7000}, {"tokens_per_step": 50}) == Overrides(tokens_per_step=50, params=7000)


@pytest.mark.parametrize("wrong", [3, "tokens_per_step", [5], {"tokens_per_stop": 5}])
def test_anything_else_for_corrections_is_an_option_error(wrong, tmp_path):
    for options in ({}, {"tokens_per_step": 60}):
        with pytest.raises(OptionError):
            Overrides.take(dict(options), wrong)
    with pytest.raises(OptionError):
        discover([tmp_path], overrides=wrong)


def test_a_correction_that_contradicts_the_mapping_is_refused():
    with pytest.raises(OptionError, match="contradicts"):
        Overrides.take({"tokens_per_step": 60}, {"tokens_per_step": 50})


def test_the_file_corrects_the_step_of_a_listed_folder(trainer_run):
    (name, *_) = sorted(folder.name for folder in trainer_run.iterdir() if folder.name.startswith("checkpoint"))
    (trainer_run / "trajectory.yaml").write_text(f"checkpoints: {{{name}: {{step: 1, tokens: 1M}}}}")
    (found,) = discover([trainer_run])
    assert (found.step, found.tokens, codes(found)) == (1, 10**6, [])


def test_a_count_that_is_computed_and_no_table_can_hold_is_refused(save_run, tmp_path):
    run = save_run(tmp_path / "run", ["step10", "step10000000"])
    with pytest.raises(UnitsError, match=r"D of run@10000000, step × 1,000,000,000,000, is too large"):
        discover([run], overrides=Overrides(tokens_per_step="1T"))
