"""Contract of `--bos`: what is measured with it, and what is said without it."""

import json
import shutil

import numpy as np
import pytest

import ptq_eval
from ptq_eval.errors import MissingTokenizerError, OutputMismatchError
from tests.support.steps import planned


def with_tokenizer(trajectory, folder, change):
    """A copy of `trajectory` whose tokenizer was changed by `change`."""
    from transformers import AutoTokenizer

    shutil.copytree(trajectory, folder)
    for checkpoint in folder.glob("checkpoint-*"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        change(tokenizer)
        tokenizer.save_pretrained(checkpoint)
    return folder


def adds_bos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    word = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{word[0]} $A", special_tokens=[word])


def test_all_windows_begin_with_it_and_keys_and_names_say_so(trajectory, small):
    plain, begun = planned(trajectory, **small), planned(trajectory, **small, bos=True)
    for without, work in zip(plain.workloads, begun.workloads, strict=True):
        for windows in (work.evaluation, work.calibration):
            assert "-bos-" in windows.protocol
            assert len(np.unique(windows.ids[:, 0])) == 1
        assert not {trial.key() for trial in work.trials} & {trial.key() for trial in without.trials}
        assert "-bos-" not in without.evaluation.protocol


def test_a_tokenizer_that_adds_one_is_warned_of_once(trajectory, small, tmp_path):
    changed = with_tokenizer(trajectory, tmp_path / "run", adds_bos)
    (warning,) = planned(changed, **small).warnings
    assert "--bos" in warning
    assert planned(changed, **small, bos=True).warnings == []
    assert planned(trajectory, **small).warnings == []


def test_checkpoints_without_such_a_token_are_excluded(trajectory, small, tmp_path):
    changed = with_tokenizer(trajectory, tmp_path / "run", lambda tokenizer: setattr(tokenizer, "bos_token", None))
    plan = planned(changed, **small, bos=True)
    assert plan.workloads == []
    assert {type(error) for _, error in plan.excluded} == {MissingTokenizerError}


def test_an_output_folder_has_one_kind_of_window(trajectory, small, tmp_path):
    """And folders written before there was a choice are taken up."""
    options = {**small, "quantizers": ("rtn",), "bits": (4,), "write_report": False}
    first = ptq_eval.run(trajectory, tmp_path / "out", **options).table
    with pytest.raises(OutputMismatchError, match=r"got --bos \| allowed: without --bos"):
        ptq_eval.run(trajectory, tmp_path / "out", **options, bos=True)
    path = tmp_path / "out" / "run.json"
    info = json.loads(path.read_text())
    del info["fixed"]["bos"]
    path.write_text(json.dumps(info))
    again = ptq_eval.run(trajectory, tmp_path / "out", **options).table
    assert again["loss_fp"].tolist() == first["loss_fp"].tolist()
    begun = ptq_eval.run(trajectory, tmp_path / "begun", **options, bos=True).table
    assert begun["loss_fp"].tolist() != first["loss_fp"].tolist()
