"""Contract: the tables of `inspect` name every checkpoint, by its folder where the step is not known."""

import io

from rich.console import Console

from ptq_eval.checkpoints import inspection_rows
from ptq_eval.records import Checkpoint
from ptq_eval.report.run.inspection import inspection_table


def shown(*checkpoints):
    console = Console(file=io.StringIO(), width=150)
    console.print(inspection_table(inspection_rows(checkpoints)))
    return console.file.getvalue()


def test_checkpoints_without_a_step_are_called_by_their_folders():
    named = [Checkpoint("mine", None, None, 10, revision=name) for name in ("10pct", "100pct", "./final")]
    text = shown(named[0].with_problem("x", "it is so", remedy="change it"), *named[1:], Checkpoint("mine", 98, 9, 10))
    for name in ("10pct", "100pct", "final", "98"):
        assert any(line.split()[:1] == [name] for line in text.splitlines())
    assert "mine@10pct: x: it is so | remedy: change it" in text


def test_one_alone_is_called_by_its_run():
    assert "mine: x: it is so" in shown(
        Checkpoint("mine", None, None, 10, revision="mine").with_problem("x", "it is so")
    )
