"""Contract of `ptq-eval probe`: equal data, one line for every wrong request, and the same again."""

import json
import shutil

import pandas as pd
import pytest

from ptq_eval.jobs import probe as job

TINY = (
    *("--width", "8", "--layers", "1", "--vocab", "300", "--context", "16", "--batch-size", "4", "--warmup", "4"),
    *("--ratios", "0.5,1,2", "--device", "cpu", "--threads", "1"),
)
BRANCHES = ("--branch", "decay:20%", "--branch", "qat:20%@3", "--branch", "average:2", "--branch", "decay:10%")


@pytest.fixture
def few(quick):
    """The options of `quick` that are no options of a fit."""
    place = quick.index("--bootstrap")
    return quick[:place] + quick[place + 2 :]


@pytest.fixture(scope="module")
def trained(material, tmp_path_factory):
    """A run whose last state alone is kept."""
    from ptq_eval.pretrain import PretrainConfig, pretrain

    out = tmp_path_factory.mktemp("trained") / "run"
    shape = {"width": 8, "layers": 1, "vocab": 300, "context": 16, "batch_size": 4, "warmup": 4}
    pretrain(
        PretrainConfig(**shape, ratios=(0.5, 1, 2)),
        material.evaluation.read_text(),
        out,
        source=str(material.evaluation),
    )
    return sorted((out / "trunk").glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))


@pytest.fixture
def probe(ptq_eval, trained, few, tmp_path):
    """probe(*flags, checkpoint=the last one) -> Answer"""

    def call(*flags, checkpoint=trained[-1]):
        command = ("probe", checkpoint, "-o", tmp_path / "out", *few, "--group-size", "8", *flags)
        return ptq_eval(*command, repeated=True)

    return call


@pytest.mark.drawn("png")
def test_every_ending_is_compared_at_equal_tokens(probe, trained, tmp_path):
    answer = probe(*BRANCHES)
    assert (answer.code, answer.err) == (0, "")
    assert "probe.json, probe.csv, probe.md" in answer.out
    table = pd.read_csv(tmp_path / "out" / "probe.csv")
    for _, group in table.groupby("group"):
        assert group["tokens"].nunique() == 1
        assert "trunk" in set(group["ending"])
    start = int(trained[-1].name.partition("-")[2])
    ends = dict(zip(table["ending"], table["step"] / start))
    assert ends["average:2"] == 1
    assert ends["decay:20%"] == ends["qat:20%@3"] == pytest.approx(1.25, abs=0.05)
    assert ends["decay:10%"] == pytest.approx(1 / 0.9, abs=0.05)
    compared = table[table["ending"] != "trunk"]
    assert compared[["difference", "error", "p", "decision"]].notna().all(axis=None)
    assert table[table["ending"] == "trunk"]["difference"].isna().all()
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert record["start"]["step"] == start
    assert "at the same D" in (tmp_path / "out" / "probe.md").read_text()
    assert (tmp_path / "out" / "figures" / "probe.png").stat().st_size > 1000


def test_the_same_command_gives_the_same_and_further_branches_add(probe, tmp_path, monkeypatch):
    assert probe("--branch", "decay:20%").code == 0
    first = pd.read_csv(tmp_path / "out" / "probe.csv")
    assert probe("--branch", "decay:20%").code == 0
    pd.testing.assert_frame_equal(first, pd.read_csv(tmp_path / "out" / "probe.csv"))
    assert probe("--branch", "decay:20%,qat:30%").code == 0
    both = pd.read_csv(tmp_path / "out" / "probe.csv").set_index("key")
    same = ["loss", "delta", "weights_sha", "difference", "error"]
    pd.testing.assert_frame_equal(first.set_index("key")[same], both.loc[first["key"], same])
    assert set(both["ending"]) == {"trunk", "decay:20%", "qat:30%@4"}


def test_a_path_may_go_up_and_down(probe, trained, tmp_path):
    indirect = trained[-1].parent / ".." / "trunk" / trained[-1].name
    assert probe("--branch", "average:2", checkpoint=indirect).code == 0
    assert set(pd.read_csv(tmp_path / "out" / "probe.csv")["ending"]) == {"trunk", "average:2"}


def test_an_interrupted_probe_goes_on(probe, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "verify_all", killed)
        assert probe("--branch", "decay:20%").code == 130
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("model.safetensors")}
    assert len(trained) == 2
    assert probe("--branch", "decay:20%").code == 0
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ((), 2, ["--branch names no way to end the run", "--branch decay:10%"]),
        (("--branch", "dekay:10%"), 2, ["unknown branch", "did you mean 'decay'?"]),
        (("--branch", "decay:95%"), 2, ["share of a branch is out of range", "at most 90%"]),
        (
            ("--branch", "average:9"),
            2,
            ["average of more checkpoints than were saved", "9 with 3 checkpoints", "| remedy: --branch average:3\n"],
        ),
        (("--branch", "ema:0.9"), 2, ["saved no such average", "ema:0.9"]),
        (("--branch", "qat:10%@1"), 2, ["not a precision to train in"]),
        (("--branch", "qat:10%@full"), 2, ["does not round", "got qat:10%@full", "remedy: qat:10%@4\n"]),
        (("--branch", "decay+qat:10%@full"), 2, ["does not round", "remedy: decay+qat:10%@4, or decay:10%\n"]),
        (("--branch", "decay:1e-9%"), 2, ["less than half a step", "decay:1e-09% of step", "remedy: decay:10%\n"]),
        (("--branch", "decay"), 2, ["needs its amount", "remedy: for example decay:10%\n"]),
        (("--branch", "decay:10%", "--text", "none.txt"), 24, ["none.txt"]),
        (("--branch", "decay:10%", "--text", "stdlib:calibration"), 2, ["trained on another text"]),
    ],
)
def test_bad_requests_are_one_line(probe, tmp_path, flags, code, said):
    answer = probe(*flags)
    assert answer.code == code, answer.err
    assert answer.err.count("\n") == 1
    assert all(part in answer.err for part in said), answer.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_its_state_says_what_is_possible(probe, trained, trajectory, tmp_path):
    answer = probe("--branch", "decay:10%", checkpoint=trained[0])
    assert answer.code == 60
    assert "was not kept" in answer.err
    assert "ptq-eval average" in answer.err
    answer = probe("--branch", "decay:10%", checkpoint=trajectory / "checkpoint-300")
    assert answer.code == 60
    assert "ptq-eval average" in answer.err
    assert answer.err.count("\n") == 1
    assert probe("--branch", "decay:10%", checkpoint=tmp_path / "none").code == 10


def test_the_first_checkpoint_has_none_before_it(probe, trained, tmp_path):
    run = shutil.copytree(trained[0].parent.parent, tmp_path / "run")
    for folder in trained[:-1]:
        shutil.rmtree(run / "trunk" / folder.name)
    answer = probe("--branch", "average:2", checkpoint=run / "trunk" / trained[-1].name)
    assert answer.code == 2
    assert "2 with 1 checkpoint" in answer.err
