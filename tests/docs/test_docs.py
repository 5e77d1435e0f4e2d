"""Contract: what the documentation says can be done, can be done, and what it lists is what there is."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from ptq_eval import errors
from ptq_eval.checkpoints import Overrides
from ptq_eval.cli.main import cli
from ptq_eval.results.table import COLUMNS
from tests.docs.pages import PAGES, ROOT, anchors, blocks, commands, links, name, prose

DOCS = ROOT / "docs"
every_page = pytest.mark.parametrize("page", PAGES, ids=name)
PACKAGES = [page for page in PAGES if any(block.file for block in blocks(page))]
SESSIONS = [page for page in PAGES if any(b.language == "sh" and b.words == ("{.run}",) for b in blocks(page))]
RUNNABLE = [p for p in PAGES if p not in SESSIONS and any(b.language == "python" and not b.words for b in blocks(p))]

LONG = {f"docs/{page}.md" for page in ("adapt", "fitting", "formats", "mixed-precision", "theory")}
"""Pages whose code measures or fits for several seconds."""


def with_slow(pages, slow):
    """The pages as parameters; those that are named in `slow` are marked so."""
    return [pytest.param(page, marks=pytest.mark.slow) if name(page) in slow else page for page in pages]


def run(*command, cwd, **env):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(cwd), **env}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def first_column(page, header):
    """The code in the first column of the table whose header begins with `header`, several in a cell included."""
    table = re.search(rf"^\| {header} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert table, f"{name(page)} has no table {header!r}"
    cells = [row.split(" | ")[0] for row in table[1].splitlines()]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def test_there_are_pages():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/concepts.md"} <= {name(page) for page in PAGES}
    assert len(PACKAGES) == 3


@every_page
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        assert target.is_relative_to(ROOT), f"{name(page)} links outside the project: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}; headings: {sorted(anchors(target))}"


@every_page
def test_python_compiles(page):
    for block in blocks(page):
        if block.language == "python":
            assert not block.words or block.file or block.words == ("{.no-run}",), f"{name(page)}:{block.line}"
            ast.parse(block.text, f"{name(page)}:{block.line}")


@pytest.mark.parametrize("page", with_slow(RUNNABLE, LONG), ids=name)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page):
        if block.language == "python" and not block.words:
            exec(compile(block.text, f"{name(page)}:{block.line}", "exec"), names)


@pytest.mark.session
@pytest.mark.parametrize("page", with_slow(SESSIONS, {*map(name, SESSIONS)} - {"docs/tutorial.md"}), ids=name)
def test_a_session_runs(page, tmp_path):
    """The blocks `sh {.run}` and `python` of a page in order, in a folder where `runs/my-model` has checkpoints."""
    for step in (98, 314, 980, 3138, 9805):
        checkpoint = f"llama-40k/checkpoint-{step}"
        shutil.copytree(
            ROOT / "examples" / "trajectory" / checkpoint, tmp_path / "runs" / "my-model" / Path(checkpoint).name
        )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in blocks(page):
        if block.language == "sh" and block.words:
            run("bash", "-euc", block.text, cwd=tmp_path, PATH=path)
        elif block.language == "python":
            run(sys.executable, "-c", block.text, cwd=tmp_path)


def laid_down(page, folder):
    """The project that the files of a page describe, with its entry points laid down as an installer does it; and the
    names of its tests."""
    files = {block.file: block.text for block in blocks(page) if block.file}
    folder.mkdir()
    for path, text in files.items():
        (folder / path).write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))

    return project, [f"{folder.name}/{path}" for path in files if path.startswith("test_")]


def test_example_packages_pass_their_own_tests(tmp_path):
    """All in one process, which need not import torch for each."""
    folders = [tmp_path / page.stem for page in PACKAGES]
    projects, tests = zip(*map(laid_down, PACKAGES, folders))
    found = os.pathsep.join(map(str, folders))
    every = [path for own in tests for path in own]
    command = [sys.executable, "-m", "pytest", "-v", "--rootdir=.", "-p", "no:cacheprovider"]
    out = run(*command, *every, cwd=tmp_path, PYTHONPATH=found)
    assert all(re.search(rf"^{path}::\S+ PASSED", out, re.MULTILINE) for path in every), out
    listed = run(sys.executable, "-m", "ptq_eval", "quantizers", cwd=tmp_path, PYTHONPATH=found)
    quantizers = [one["name"] for one in projects if "ptq_eval.quantizers" in one["entry-points"]]
    assert quantizers
    assert all(one in listed for one in quantizers)


def parse(args):
    """Parse a command with the options as they are declared; nothing is run."""
    known = args[0] in cli.commands
    if args[0] in ("-h", "--help", "--version") or (known and len(args) == 1):
        return  # help, or a command called by its name alone
    label, rest = (args[0], args[1:]) if known else ("run", args)
    with contextlib.suppress(click.exceptions.Exit):  # --help of a command
        cli.commands[label].make_context(label, list(rest))


@every_page
def test_commands_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text('{"model_type": "llama"}')  # a file whose content is read with the options
    for args in commands(page):
        try:
            parse(args)
        except (click.ClickException, errors.PtqEvalError) as error:
            pytest.fail(f"{name(page)}: ptq-eval {' '.join(args)}: {error}")


@pytest.mark.parametrize(
    "wrong", ["run x --bit 2", "run x --bits two", "inspect --json", "report out --windows 3", "--no"]
)
def test_a_wrong_command_is_noticed(wrong):
    with pytest.raises((click.ClickException, errors.PtqEvalError)):
        parse(wrong.split())


def test_commands_are_found():
    found = [" ".join(args) for page in PAGES for args in commands(page)]
    assert any("--shard 1/8" in command for command in found)
    assert any(command.startswith("pretrain") for command in found)
    assert len(found) > 12


@every_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join([*re.findall(r"`(make [^`]+)`", prose(page)), *(block.text for block in blocks(page))])
    for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"{name(page)}: make {target}"


def test_exit_codes_are_those_of_the_errors():
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? ?\|", (DOCS / "concepts.md").read_text("utf-8"), re.MULTILINE)
    documented = {int(code): cls for code, cls in rows if cls}
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PtqEvalError)]
    assert documented == {cls.exit_code: cls.__name__ for cls in classes}


def test_every_column_of_the_table_is_explained():
    assert sorted(first_column(DOCS / "reading-the-report.md", "columns")) == sorted(COLUMNS)


def test_every_key_of_trajectory_yaml_is_explained():
    keys = [field.name for field in dataclasses.fields(Overrides)]
    assert sorted(first_column(DOCS / "trajectory-yaml.md", "key")) == sorted(keys)


def test_the_yaml_of_the_page_is_read(tmp_path):
    from ptq_eval.checkpoints.overrides import read_overrides

    block = next(b for b in blocks(DOCS / "trajectory-yaml.md") if b.language == "yaml")
    (tmp_path / "trajectory.yaml").write_text(block.text, encoding="utf-8")
    found = read_overrides(tmp_path)
    assert found is not None
    assert found.runs["large"].tokens_per_step == 4194304


@pytest.mark.parametrize(("header", "kind"), [("format", "checkpoints"), ("kind", "corpora")])
def test_the_readme_lists_the_built_in_plugins(header, kind):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(first_column(ROOT / "README.md", header)) == sorted(project["entry-points"][f"ptq_eval.{kind}"])


def test_every_suite_is_listed_with_its_status_and_source():
    from ptq_eval import units
    from ptq_eval.checkpoints.base import read_label
    from ptq_eval.checkpoints.suites import SUITES

    rows = []
    for suite in SUITES:
        position = read_label(suite.check.model, suite.check.label)
        tokens = units.write(position.tokens, digits=4) if position and position.tokens else "you give it"
        tokens = "in config.json" if suite.path else tokens
        rows.append(f"| {suite.name} | `{suite.check.label}` | {tokens} | {suite.status.value} | {suite.source} |")
    table = (DOCS / "trajectories.md").read_text("utf-8").partition("## Public suites")[2]
    assert [line for line in table.splitlines() if line.startswith("| ")][2:] == rows


def test_every_suite_has_its_command():
    from ptq_eval.checkpoints.catalogue import entries

    rows = []
    for entry in entries():
        cells = (entry.suite.name, f"`{entry.command}`", *entry.cells(), entry.rule, entry.suite.schedule)
        rows.append(f"| {' | '.join(cells)} |")
    table = (DOCS / "suites.md").read_text("utf-8").partition("## The commands")[2]
    assert [line for line in table.splitlines() if line.startswith("| ")][2:] == rows


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE))
    assert {name(page) for page in DOCS.glob("*.md")} <= listed
    assert all((ROOT / page).is_file() for page in listed)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
