"""What is said of a framework's checkpoint that is wrong: which entry, what was found and expected, where to look."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from ptq_eval.checkpoints import discover, faults, gravest, verify_all
from ptq_eval.errors import NoCheckpointError, OtherStageError
from ptq_eval.models.pickles import telling_line
from tests.checkpoints.support import codes, nanochat_run

FIXTURES = Path(__file__).parent / "fixtures"


def test_the_message_for_files_of_tensors_says_how_to_give_their_configuration(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "step_10.pt")
    with pytest.raises(NoCheckpointError, match=r"allowed: .*nanoGPT.*remedy: .*--architecture CONFIG"):
        discover([tmp_path])


def test_later_stages_are_no_fault_beside_a_sound_run(tmp_path):
    for place in ("base_checkpoints", "chatsft_checkpoints"):
        nanochat_run(tmp_path / place / "d3", "E", steps=(10,))
    found = verify_all(discover([tmp_path]))
    wrong = [gravest(checkpoint) for checkpoint in found if checkpoint.fatal]
    assert [type(error) for error in wrong] == [OtherStageError]
    assert faults(wrong, sound=True) == []
    assert faults(wrong, sound=False) == wrong


def test_a_meta_file_of_more_layers_than_the_weights_have_is_named(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "E", steps=(10, 20))
    meta = json.loads((folder / "meta_000010.json").read_text())
    meta["model_config"]["n_layer"] = 6
    (folder / "meta_000010.json").write_text(json.dumps({**meta, "step": "10"}))
    first, second = verify_all(discover([folder]))
    (problem,) = first.fatal
    assert not second.fatal
    assert "disagree on n_layer | got 6 | allowed: 3, the layers of the weights" in problem.message


def test_a_wrong_shape_says_both_and_where_the_configuration_is(tmp_path):
    folder = nanochat_run(tmp_path / "d3", "E", steps=(10, 20))
    path = folder / "model_000010.pt"
    torch.save({**torch.load(path), "transformer.h.1.attn.c_q.weight": torch.ones(16, 32)}, path)
    first = verify_all(discover([folder]))[0]
    assert codes(first)[:1] == ["not_loaded"]
    assert "model_config of meta_NNNNNN.json must belong to these weights" in str(first.fatal[0])
    assert "transformer.h.1.attn.c_q.weight (got [16, 32], expected [32, 32])" in str(first.fatal[0])


def test_the_number_of_heads_may_be_given_on_the_command_line(tmp_path):
    shutil.copytree(FIXTURES / "torchtitan" / "flat", tmp_path / "run")
    (tmp_path / "run" / "trajectory.yaml").unlink()
    (found,) = verify_all(discover([tmp_path / "run"]))
    assert re.search(r"""remedy: give --architecture '\{"num_attention_heads": N\}'""", str(found.fatal[0]))


def test_a_long_error_is_quoted_to_the_end_of_a_sentence():
    line = telling_line(RuntimeError("Reading failed. " + "This goes on for more than a line. " * 9))
    assert line.endswith("more than a line")
    assert len(line) <= 200
