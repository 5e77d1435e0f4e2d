"""Contract: what a person at a terminal sees, what a pipe gets, and that help is quick."""

import os
import pty
import re
import runpy
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest

from ptq_eval.cli.main import cli
from tests.cli.support import start

HEAVY = ("torch", "transformers", "numpy", "pandas", "scipy", "matplotlib", "datasets", "ptq_eval.jobs.run")
AFTERWARDS = "import atexit; atexit.register(lambda: print([n for n in {!r} if n in sys.modules], file=sys.stderr))"
COMMANDS = sorted(name for name, command in cli.commands.items() if not command.hidden)


@contextmanager
def terminal(monkeypatch):
    """Within the context standard error is a terminal; what was drawn on it is in the list afterwards."""
    ours, theirs = pty.openpty()
    drawn = []

    def read():
        with suppress(OSError):  # the other end was closed
            while True:
                drawn.append(os.read(ours, 65536))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as stream:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", "100")
        yield drawn
    reader.join(timeout=5)
    os.close(ours)


def test_one_bar_with_the_time_left_on_a_terminal(ptq_eval, material, quick, tmp_path, monkeypatch):
    with terminal(monkeypatch) as drawn:
        answer = ptq_eval("run", material.run, "-o", tmp_path / "out", *quick)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(drawn).decode())
    assert answer.code == 0
    for stage in ("reading weights", "measuring"):
        assert re.search(rf"{stage} .*\d+% +\S+ left", text), text
    assert "fitting" in text
    assert text.count("\n") == 1  # one bar, always on the same line, which is erased at the end
    assert "\x1b" not in answer.out


def test_one_line_says_that_a_compiler_is_missing(ptq_eval, material, quick, tmp_path, monkeypatch):
    from quantizers import kernels

    kernels._usable.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    try:
        answer = ptq_eval("run", material.run, "-o", tmp_path / "out", *quick)
    finally:
        kernels._usable.cache_clear()
    assert answer.code == 0
    (line,) = answer.err.splitlines()
    assert line.startswith("ptq-eval: the inner loops run in torch, up to three times slower: numba cannot be imported")


def test_nothing_is_drawn_in_a_pipe(ptq_eval, material, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # asks for colours, not for a bar in a file
    answer = ptq_eval("run", material.run, "-o", tmp_path / "out", *quick)
    assert (answer.code, answer.err) == (0, "")
    assert "measuring" not in answer.out


@pytest.mark.slow
def test_the_default_command_and_the_default_output(ptq_eval, material, quick, tmp_path):
    answer = ptq_eval(material.run, *quick)
    assert (answer.code, answer.err) == (0, "")
    assert "Written to tiny-ptq" in answer.out
    written = {path.name for path in (tmp_path / "work" / "tiny-ptq").iterdir()}
    assert written >= {"run.json", "records", "degradation.csv", "fit.json", "report.md", "tables", "figures"}
    first = ptq_eval(*quick, material.run)  # flags before the folder
    assert (first.code, first.err) == (0, "")
    for command in ("fit", "report"):
        again = ptq_eval(command, "tiny-ptq")
        assert (again.code, again.err) == (0, "")
        assert "Written: " in again.out


def test_inspect_shows_every_checkpoint(ptq_eval, material):
    answer = ptq_eval("inspect", material.run)
    assert (answer.code, answer.err) == (0, "")
    for step in (100, 200, 300):
        assert re.search(rf"^ +{step} +\S+ +explicit ", answer.out, re.MULTILINE)


def test_quantizers_are_listed_with_their_options(ptq_eval):
    answer = ptq_eval("quantizers")
    assert (answer.code, answer.err) == (0, "")
    for name in ("awq", "gptq", "rtn", "act_order", "damping", "0.01"):
        assert name in answer.out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_readable_at_80_columns_and_has_an_example(ptq_eval, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    answer = ptq_eval(*([command] if command else []), "--help")
    assert (answer.code, answer.err) == (0, "")
    assert max(map(len, answer.out.splitlines())) <= 80
    assert "Example" in answer.out
    assert f"ptq-eval {command}" in answer.out
    for option in cli.commands[command].params if command else ():
        assert isinstance(option, click.Argument) or option.help, option.name


def test_no_arguments_are_a_question(ptq_eval):
    answer = ptq_eval()
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == ptq_eval("--help").out
    assert answer.out == ptq_eval("-h").out


def test_every_example_in_help_parses():
    for name, command in cli.commands.items():
        text = f"{command.help}\n{command.epilog or ''}"
        examples = re.findall(rf"^ *ptq-eval ({name}) (.*?)(?: {{3,}}\(.*)?$", text, re.MULTILINE)
        for _, line in examples:
            command.make_context(name, shlex.split(line), resilient_parsing=False)


def test_architecture_help_imports_nothing_heavy():
    process = start("run", "--help", before=AFTERWARDS.format(HEAVY))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (0, "[]")
    assert "--bits" in out


@pytest.mark.slow
def test_architecture_fitting_and_reporting_import_no_torch(out):
    process = start("report", out, before=AFTERWARDS.format(("torch", "transformers", "quantizers")))
    said, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (0, "[]")
    assert "Written" in said


def test_python_m_ptq_eval_is_the_same_command():
    said = subprocess.run([sys.executable, "-m", "ptq_eval", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("ptq-eval, version ")


def test_the_reference_page_is_what_the_commands_say(tmp_path, monkeypatch):
    script = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate_cli.py"))
    main = script["main"]
    monkeypatch.setattr(sys, "argv", ["generate_cli.py", "--check"])
    main()
    for name in COMMANDS:
        assert f"## ptq-eval {name}\n" in script["page"]()
    stale = tmp_path / "cli.md"
    stale.write_text(script["page"]().replace("--bits", "--bytes"))
    monkeypatch.setitem(main.__globals__, "PAGE", stale)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert "stale" in str(leaving.value.code)
    monkeypatch.setattr(sys, "argv", ["generate_cli.py"])
    main()
    assert stale.read_text() == script["page"]()
