"""Contract: what may share one output folder, and what is refused."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import ptq_eval
from ptq_eval.errors import OutputMismatchError, UnreadableCheckpointError
from tests.support import models as core_models
from tests.support.steps import PER_CHECKPOINT, lines

EMBEDDED = Path(__file__).resolve().parents[2] / "examples" / "trajectory" / "llama-40k"


@pytest.mark.slow
def test_a_grid_may_grow(measure, complete, trajectory, small, tmp_path):
    """First one bit-width of one quantizer on two checkpoints; then the rest."""
    part = tmp_path / "small"
    for step in (100, 200):
        shutil.copytree(trajectory / f"checkpoint-{step}", part / f"checkpoint-{step}")
    first = measure(part, quantizers=("gptq",), bits=(4,))
    assert len(first.table) == lines(tmp_path / "out") == 4
    second = measure(part, quantizers=("gptq",))
    assert len(second.table) == lines(tmp_path / "out") == 6
    shutil.copytree(trajectory / "checkpoint-400", part / "checkpoint-400")
    result = measure(part)
    assert lines(tmp_path / "out") == 3 * PER_CHECKPOINT
    pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)
    assert measure(part, quantizers=("rtn",), bits=(3,)).table.equals(result.table), (
        "asking for less has lost something"
    )


MISMATCHES = [
    ({"seq_len": 16}, "--seq-len 16"),
    ({"symmetric": True}, "got --symmetric |"),
    ({"group_size": 8}, "--group-size 8"),
    ({"eval_windows": 5}, "--eval-windows 5"),
    ({"eval_sample": "first"}, "got --eval-sample first | allowed: --eval-sample spread"),
    ({"eval_seed": 1}, "--eval-seed 1"),
    ({"calib_sample": "crops"}, "--calib-sample crops"),
    ({"calibration": "shared"}, "--calibration shared"),
    ({"dtype": "bfloat16"}, "--dtype bfloat16"),
    ({"include_head": True}, "got --include-head |"),
    ({"options": {"gptq": {"act_order": True}}}, "act_order"),
]


@pytest.mark.parametrize(("changes", "words"), MISMATCHES, ids=[words for _, words in MISMATCHES])
def test_other_options_are_refused(complete, trajectory, small, changes, words):
    run_json, before = (complete[0] / "run.json").read_bytes(), lines(complete[0])
    with pytest.raises(OutputMismatchError, match="results of other options") as caught:
        ptq_eval.run(trajectory, complete[0], write_report=False, **{**small, **changes})
    assert words in str(caught.value)
    assert "choose another -o" in str(caught.value)
    assert ((complete[0] / "run.json").read_bytes(), lines(complete[0])) == (run_json, before)


def test_a_folder_from_before_there_were_samples_holds_the_first_windows(measure, tmp_path):
    """Neither its options nor its records know of samples; asked for the first windows, the run continues it."""
    first = {"eval_sample": "first", "calib_sample": "first"}
    result = measure(**first)
    path = tmp_path / "out" / "run.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    new = [info["fixed"].pop(name) for name in ("eval_sample", "eval_seed", "calib_sample", "calib_seed")]
    assert new == ["first", 0, "first", 0]
    info["fixed"]["calib_seed"] = None
    path.write_text(json.dumps(info), encoding="utf-8")
    (records,) = (tmp_path / "out" / "records").iterdir()
    rows = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    assert {row["trial"].pop("sample")["selection"] for row in rows} == {"first"}
    records.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    again = measure(**first)
    assert lines(tmp_path / "out") == 3 * PER_CHECKPOINT
    assert again.table["delta"].equals(result.table["delta"])
    assert set(again.table["covers"].dropna()) == {"passages"}
    with pytest.raises(OutputMismatchError, match=r"got --eval-sample spread \| allowed: --eval-sample first"):
        measure()


def test_another_trajectory_is_refused(complete, small, tmp_path, tokenizer):
    same_name = tmp_path / "small"
    core_models.save(same_name / "checkpoint-100", core_models.build("llama", seed=77), tokenizer, tokens=100_000)
    with pytest.raises(OutputMismatchError, match=r"another trajectory.*small step 100 with weights"):
        ptq_eval.run(same_name, complete[0], write_report=False, **small)
    with pytest.raises(OutputMismatchError, match=r"another trajectory.*runs elsewhere"):
        ptq_eval.run(same_name.rename(tmp_path / "elsewhere"), complete[0], write_report=False, **small)


def test_another_text_under_the_same_name_is_refused(measure, texts, trajectory, small, tmp_path):
    text = tmp_path / "text.txt"
    shutil.copy(texts.evaluation, text)
    measure(eval_text=str(text), quantizers=("rtn",))
    text.write_text("x" + text.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(OutputMismatchError, match="another evaluation text"):
        measure(eval_text=str(text), quantizers=("rtn",))


def test_a_broken_checkpoint_may_be_mended_later(measure, complete, trajectory, tmp_path):
    """It was excluded, so nothing of it is stored that its new weights could contradict."""
    root = shutil.copytree(trajectory, tmp_path / "small")
    weights = root / "checkpoint-200" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    result = measure(root)
    assert result.table["status"].value_counts().to_dict() == {"ok": 2 * PER_CHECKPOINT, "excluded": 1}
    assert [type(p) for p in result.problems] == [UnreadableCheckpointError]
    weights.write_bytes(good)
    result = measure(root)
    assert result.problems == ()
    pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)


def test_a_checkpoint_that_breaks_later_is_set_aside(measure, trajectory, tmp_path):
    root = shutil.copytree(trajectory, tmp_path / "small")
    measure(root, quantizers=("rtn",))
    weights = root / "checkpoint-200" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = measure(root, quantizers=("rtn",))
    assert result.table[result.table.step == 200]["status"].tolist() == ["excluded"]


def test_an_excluded_checkpoint_leaves_the_table_and_a_deleted_one_stays(tmp_path):
    root = tmp_path / "r"
    for step in (98, 980, 3138):
        shutil.copytree(EMBEDDED / f"checkpoint-{step}", root / f"checkpoint-{step}")
    options = {"quantizers": ("rtn",), "bits": (4,), "eval_windows": 4, "seq_len": 32, "bootstrap": 10}
    steps = lambda result: list(dict.fromkeys(result.table["step"]))
    assert steps(ptq_eval.run(root, tmp_path / "out", write_report=False, **options)) == [98, 980, 3138]
    assert steps(ptq_eval.run(root, tmp_path / "out", write_report=False, exclude=(98,), **options)) == [980, 3138]
    shutil.rmtree(root / "checkpoint-980")
    assert steps(ptq_eval.run(root, tmp_path / "out", write_report=False, **options)) == [98, 980, 3138]


def test_the_report_of_one_shard_says_that_it_is_partial(tmp_path):
    options = {"quantizers": ("rtn",), "bits": (4,), "eval_windows": 4, "seq_len": 32, "bootstrap": 10}
    result = ptq_eval.run(EMBEDDED, tmp_path / "out", write_report=False, shard=(1, 5), **options)
    assert "8 of 10 checkpoints are not measured yet: this report is partial" in result.fit["warnings"]
