"""Contract: a request that cannot be met is one line, with its own exit code, before anything is written."""

import click
import numpy as np
import pytest

from ptq_eval import errors
from ptq_eval.cli.main import cli

REFUSED = [
    # bits
    (("--bits", "1"), 19, ["--bits is too small", "got 1", "2 to 8"]),
    (("--bits", "9"), 19, ["got 9", "2 to 8"]),
    (("--bits", "2,3,four"), 19, ["an entry of --bits is not a whole number", "'four'"]),
    (("--bits", "2.5"), 19, ["2.5"]),
    (("--bits", ""), 2, ["nothing to measure"]),
    # group size
    (("--group-size", "0"), 18, ["--group-size is too small", "got 0", "none"]),
    (("--group-size", "-4"), 18, ["got -4"]),
    (("--group-size", "33"), 18, ["larger than a row", "rows of 32 columns", "q_proj", "remedy: --group-size 32"]),
    (("--group-size", "wide"), 18, ["not a whole number", "wide", "at least 1; or none, auto"]),
    # quantizers and their options
    (("--quantizers", "rtn,gpqt"), 20, ["unknown quantizer", "'gpqt'", "did you mean 'gptq'?"]),
    (("--quantizers", "quip"), 20, ["unknown quantizer", "awq,", "gptq,", "rtn"]),
    (("--quantizers", ","), 2, ["an entry of --quantizers is empty"]),
    (("--option", "rtn.msee=true"), 2, ["rtn has no option 'msee'", "did you mean 'mse'?"]),
    (("--option", "rtn.mse=maybe"), 2, ["rtn", "'mse'", "allowed is bool", "'maybe'"]),
    (("--quantizers", "gptq", "--option", "gptq.damping=-1"), 2, ["'damping'", "-1"]),
    (("--quantizers", "gptq", "--option", "gptq.damping=.nan"), 2, ["'damping'", "nan"]),
    (("--quantizers", "gptq", "--option", "gptq.dead={a: 1}"), 2, ["'dead'"]),
    (("--option", "gptq.damping=0.1"), 2, ["not in this run", "gptq"]),
    (("--option", "mse=true"), 2, ["--option gptq.act_order=true"]),
    (("--option", "rtn.mse"), 2, ["QUANTIZER.OPTION=VALUE"]),
    (("--option", "rtn.mse=["), 2, ["'mse'", "'['"]),
    (("--calibration", "sequental"), 2, ["sequental", "sequential"]),
    (("--laws", "kumr"), 20, ["unknown law", "did you mean 'kumar'?"]),
    (("--laws", "chen"), 2, ["chen", "got G", "ptq-eval fit OUT --laws"]),
    # windows and texts
    (("--seq-len", "1"), 2, ["--seq-len is too small"]),
    (("--seq-len", "33"), 2, ["longer than the model's context", "2 to 32"]),
    (("--eval-windows", "some"), 2, ["--eval-windows", "some"]),
    (("--eval-windows", "1"), 2, ["--eval-windows is too small"]),
    (("--calib-windows", "0", "--quantizers", "gptq"), 2, ["--calib-windows is too small"]),
    (("--calib-seed", "-1"), 2, ["--calib-seed"]),
    (("--eval-text", "missing.txt"), 24, ["no such text file", "missing.txt"]),
    (("--eval-text", "stdlib:trian"), 24, ["trian", "train, calibration, evaluation"]),
    (("--eval-text", "wikitext3"), 24, ["unknown kind of text", "did you mean 'wikitext2'?"]),
    (("--eval-text", "hf:nobody/nothing:test"), 24, ["hf:nobody/nothing:test", "network"]),
    # machine
    (("--device", "tpu"), 27, ["unknown device", "tpu", "cuda"]),
    (("--dtype", "int8"), 2, ["int8", "bfloat16"]),
    (("--shard", "5/4"), 2, ["--shard", "5/4", "1 <= i <= n"]),
    (("--shard", "1"), 2, ["--shard is not i/n"]),
    (("--bootstrap", "1"), 2, ["--bootstrap"]),
    (("--seed", "-1"), 2, ["--seed"]),
    (("--tokens", "1e9,many"), 2, ["--tokens is not a whole number", "'many'"]),
    (("--tokens", "inf"), 2, ["--tokens is not a whole number"]),
    (("--tokens-per-step", "2.5"), 2, ["2.5"]),
    # flags
    (("--bitz", "3"), 2, ["'--bitz'", "--bits", "ptq-eval run --help"]),
]


@pytest.mark.parametrize(("flags", "code", "said"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_a_request_that_cannot_be_met(ptq_eval, material, quick, tmp_path, flags, code, said):
    ptq_eval("run", material.run, "-o", tmp_path / "out", *quick, *flags).refuses(code, *said)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "work").iterdir()) == []


FREE_TEXT = {"data", "text"}
"""Parameters whose values are paths and names, which the command line passes on as they are."""

VALUES = [
    (command, param)
    for command in cli.commands.values()
    for param in command.params
    if isinstance(param, click.Option) and not param.is_flag and param.name not in FREE_TEXT
]


def parsed(command, param, value):
    """The value as the command gets it, or its error in words without the value."""
    needed = [["x"] if isinstance(p, click.Argument) else [p.opts[0], "x"] for p in command.params if p.required]
    flags = [part for flag in needed for part in flag]
    try:
        context = command.make_context(command.name, [*flags, param.opts[-1], value])
    except errors.PtqEvalError as error:
        return error.what, error.allowed
    return context.params[param.name]


def test_a_flag_that_occurs_twice_is_refused(ptq_eval, material, tmp_path):
    twice = ("--bits", "3", "--bits", "4")
    for command in (("run", material.run), ("export", material.run), ("sensitivity", material.run)):
        answer = ptq_eval(*command, "-o", tmp_path / "out", *twice, repeated=True)
        answer.refuses(2, "--bits occurs 2 times | got 3 and 4", "give")
    answer = ptq_eval("run", material.run, "--option", "gptq.damping=0.1", "--option", "gptq.damping=0.2")
    answer.refuses(2, "--option sets gptq.damping twice | got 0.1 and 0.2")
    for flag, value in (("--fixed", "alpha=0.3"), ("--bounds", "alpha=0.1:0.3"), ("--start", "alpha=0.3")):
        answer = ptq_eval("fit", "--data", "t.csv", "--law", "chinchilla", flag, value, flag, value, repeated=True)
        answer.refuses(2, f"{flag} sets alpha twice")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--fixed", "alpha=0.3", "--start", "alpha=0.4"), "no effect on a constant that is fixed"),
        (("--bounds", "alpha=0.3:0.4", "--start", "alpha=2"), "--start is outside --bounds"),
        (("--bounds", "alpha=0.9:0.1"), "--bounds are the wrong way round"),
        (("--bounds", "alpha=0.5:0.5"), "--bounds are the wrong way round"),
        (("--tied", "alpha=alpha"), "compares a constant with itself"),
    ],
)
def test_settings_of_a_fit_that_do_nothing_are_refused(ptq_eval, flags, said):
    ptq_eval("fit", "--data", "t.csv", "--law", "chinchilla", *flags).refuses(2, said)


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("run", ("--params", "7"), "--params looks like a number of millions or billions | got 7"),
        ("inspect", ("--tokens", "1M,2,3M"), "did you mean 2B?"),
        ("run", ("--tokens-per-step", "5"), "did you mean 5M?"),
        ("run", ("--memory", "8"), "did you mean 8GB?"),
        ("plan", ("--params", "1B", "--memory", "8"), "did you mean 8GB?"),
        ("run", ("--params", "1e299"), "--params is too large"),
        ("run", ("--tokens-per-step", "1e16"), "--tokens-per-step is too large"),
    ],
)
def test_a_count_in_another_unit_is_refused_by_every_command(ptq_eval, material, command, flags, said):
    folder = [] if command == "plan" else [material.run]
    ptq_eval(command, *folder, *flags).refuses(46, said)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--bootstrap", "1e10"), 2, "--bootstrap is too large"),
        (("--seed", "1e19"), 2, "--seed is too large"),
        (("--tokens", "1M,,2M"), 2, "an entry of --tokens is empty"),
        (("--quantizers", "GPTQ"), 20, "did you mean 'gptq'?"),
    ],
)
def test_what_no_machine_or_table_can_hold_is_refused(ptq_eval, material, flags, code, said):
    ptq_eval("run", material.run, *flags).refuses(code, said)


@pytest.mark.parametrize(("command", "param"), VALUES, ids=lambda x: x.name)
def test_every_value_of_every_command_is_read_by_its_declaration(command, param):
    assert param.callback is not None, "declare it as a field of an Options class"
    assert param.type is click.UNPROCESSED


COUNTS = [pair for pair in VALUES if "whole number" in str(parsed(*pair, "none of them"))]
NUMBERS = [pair for pair in VALUES if "is not a number" in str(parsed(*pair, "none of them"))]


@pytest.mark.parametrize("ways", [("5", "5.0", "5e0", "0.5e1"), ("0", "0.0", "0e5"), ("1000", "1e3", "1_000")])
@pytest.mark.parametrize(("command", "param"), COUNTS + NUMBERS, ids=lambda x: x.name)
def test_every_number_of_every_command_may_be_written_in_every_way(command, param, ways):
    found = [parsed(command, param, way) for way in ways]
    assert all(value == found[0] for value in found), found


def test_the_counts_of_every_command_are_tested():
    assert {command.name for command, _ in COUNTS} == {*cli.commands} - {
        "plan",
        "quantizers",
        "formats",
        "backends",
        "work",
        "compare",
        "dataset",
        "paper",
    }
    assert len(COUNTS) > 30
    assert len(NUMBERS) > 10


def test_text_shorter_than_a_window(ptq_eval, material, quick, tmp_path):
    (tmp_path / "short.txt").write_text("for item in items")
    for flag in ("--eval-text", "--calib-text"):
        flags = (flag, tmp_path / "short.txt", "--quantizers", "gptq")
        ptq_eval("run", material.run, *quick, *flags).refuses(16, "does not fill one window", "at least 16", "remedy")
    (tmp_path / "empty.txt").write_text("")
    ptq_eval("run", material.run, *quick, "--eval-text", tmp_path / "empty.txt").refuses(16, "0 tokens")


@pytest.mark.parametrize("bad", [300, -1])
def test_tokens_outside_the_vocabulary(ptq_eval, material, quick, tmp_path, bad):
    np.save(tmp_path / "ids.npy", np.array([5] * 100 + [bad] + [5] * 100))
    answer = ptq_eval("run", material.run, *quick, "--eval-windows", "all", "--eval-text", tmp_path / "ids.npy")
    answer.refuses(17, f"id {bad}", "0 to 299", "remedy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspct", "x"), ["'inspct'", "did you mean 'inspect'?"]),
        (("reprot",), ["did you mean 'report'?"]),
        (("run",), ["Missing argument", "ptq-eval run --help"]),
        (("fit",), ["Missing argument", "ptq-eval fit --help"]),
        (("fit", "a", "b"), ["unexpected extra argument", "b"]),
        (("--verison",), ["--verison"]),
        (("report", "out", "--seed", "x"), ["'x'"]),
    ],
)
def test_commands_and_flags_that_do_not_exist(ptq_eval, arguments, said):
    ptq_eval(*arguments).refuses(2, *said)


def test_a_folder_called_like_a_misspelt_command_is_a_folder(ptq_eval, tmp_path):
    (tmp_path / "work" / "fits").mkdir()
    ptq_eval("fits").refuses(10, "an empty folder")


def test_a_plug_in_that_cannot_be_imported(ptq_eval, material, quick, monkeypatch):
    from importlib.metadata import EntryPoint

    from ptq_eval import plugins

    broken = EntryPoint("broken", "no_such_package.quantizer:Broken", "ptq_eval.quantizers")
    monkeypatch.setitem(plugins._points("quantizers"), "broken", broken)
    answer = ptq_eval("run", material.run, *quick, "--quantizers", "rtn,broken")
    answer.refuses(20, "'broken' cannot be loaded", "no_such_package", "remedy")


def test_every_kind_of_error_has_an_exit_code_of_its_own():
    kinds = errors.PtqEvalError.__subclasses__()
    codes = [errors.PtqEvalError.exit_code, *(kind.exit_code for kind in kinds)]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    assert max(codes) < 126  # beyond lie the shell's own
