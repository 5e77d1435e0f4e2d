"""Contract: results as they are in a git revision."""

import subprocess

import pytest

import ptq_eval
from ptq_eval.errors import NothingToFitError, RevisionError
from ptq_eval.results.gate.verdict import Verdict
from tests.results.gate.support import grid, moved, write


def git(*arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", *arguments],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository whose results became worse in the second commit; the current folder."""
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main")
    for by in (0.0, 0.03):
        subprocess.run(["rm", "-rf", "results"], check=True)
        folder = write("results/study", moved(grid(steps=(100,)), by, quantizer="gptq", bits=3))
        (folder / "figures").mkdir()
        (folder / "figures" / "large.png").write_bytes(b"not needed")
        git("add", "-A")
        git("commit", "-qm", f"by {by}")
    return tmp_path


def test_two_revisions_and_a_folder_are_compared(repository):
    for base, new in (("HEAD~1:results/study", "HEAD:results/study"), ("main~1:results/study", "results/study")):
        found = ptq_eval.compare(base, new)
        assert found.verdict == Verdict.WORSE
        assert [one.pair.about["bits"] for one in found.worse] == [3]
        assert found.base.name == base
    assert ptq_eval.compare("HEAD:results/study", "results/study").verdict == Verdict.NOT_WORSE
    assert len(ptq_eval.compare("HEAD~1:results", "HEAD:results/").worse) == 1


def test_a_folder_is_named_as_git_names_it_from_below(repository, monkeypatch):
    monkeypatch.chdir(repository / "results")
    assert ptq_eval.compare("HEAD~1:./study", "HEAD:results/study").verdict == Verdict.WORSE


def test_a_folder_of_that_name_comes_first(repository):
    write("HEAD:results", grid(steps=(100,)))
    assert ptq_eval.compare("HEAD:results", "HEAD~1:results/study").verdict == Verdict.NOT_WORSE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere:results", "no such git revision"),
        ("--help:results", "no such git revision"),
        ("HEAD:elsewhere", "has no such folder"),
        ("HEAD:results/study/run.json", "has no such folder"),
    ],
)
def test_what_git_does_not_have_is_refused(repository, name, said):
    with pytest.raises(RevisionError, match=said):
        ptq_eval.compare(name, "results/study")


def test_a_folder_without_results_is_refused_by_its_name(repository):
    with pytest.raises(NothingToFitError, match="HEAD:results/study/figures"):
        ptq_eval.compare("results/study", "HEAD:results/study/figures")


def test_outside_of_a_repository_there_are_no_revisions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(RevisionError, match="outside of a git repository"):
        ptq_eval.compare("HEAD:results", "x")
