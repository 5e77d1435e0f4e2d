"""What a command that has done its work says of the checkpoints that it skipped."""

import pytest

from ptq_eval.cli.console import leave
from ptq_eval.errors import OtherStageError, UnreadableCheckpointError


def test_later_stages_are_named_and_are_no_error(capsys):
    leave([OtherStageError("a", got="SFT", remedy="none")])
    assert capsys.readouterr().out.startswith("skipped: a")


def test_the_first_fault_is_the_error_and_the_others_are_named(capsys):
    later, first, other = OtherStageError("a"), UnreadableCheckpointError("b"), UnreadableCheckpointError("c")
    with pytest.raises(UnreadableCheckpointError, match="b"):
        leave([later, first, other])
    assert [line[:10] for line in capsys.readouterr().out.splitlines()] == ["skipped: a", "skipped: c"]


def test_nothing_skipped_is_nothing_said(capsys):
    leave([])
    assert not capsys.readouterr().out
