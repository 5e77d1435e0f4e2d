"""Contract and recovery of `ptq-eval pretrain`: what it refuses, and that the same command goes on."""

import json
import signal
import time

import pytest

from tests.cli.support import largest_file, start

TINY = (
    *("--width", "8", "--layers", "1", "--vocab", "300", "--context", "16", "--batch-size", "4", "--warmup", "4"),
    *("--ratios", "0.5,1,2", "--device", "cpu", "--threads", "1"),
)


def contents(folder):
    """What a run leaves, but for the state kept for resuming (a zip file with dates)."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "state.pt"
    }


@pytest.fixture
def train(ptq_eval, material, tmp_path):
    """train(*flags, out=...) -> Answer"""

    def call(*flags, out=tmp_path / "run"):
        return ptq_eval("pretrain", out, "--text", material.evaluation, *TINY, *flags)

    return call


def test_a_training_can_be_measured(train, ptq_eval, quick, tmp_path):
    answer = train()
    assert (answer.code, answer.err) == (0, "")
    assert str(tmp_path / "run") in answer.out
    measured = ptq_eval("run", tmp_path / "run", *quick, "--group-size", "8")
    assert (measured.code, measured.err) == (0, "")
    assert (tmp_path / "work" / "run-ptq" / "report.md").is_file()


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--ratios", "5,ten"), 2, ["an entry of --ratios is not a number", "'ten'"]),
        (("--ratios", "-5"), 2, ["--ratios is too small", "-5", "above 0"]),
        (("--ratios", "0"), 2, ["--ratios is too small"]),
        (("--ratios", ","), 2, ["an entry of --ratios is empty"]),
        (("--ratios", "nan"), 2, ["--ratios is not a number", "nan"]),
        (("--ratios", "1,inf"), 2, ["--ratios is not a number", "inf"]),
        (("--architecture", "lama"), 20, ["unknown architecture", "did you mean 'llama'?"]),
        (("--schedule", "cosin"), 2, ["cosin", "cosine"]),
        (("--width", "12"), 2, ["--width", "multiple of 8"]),
        (("--layers", "0"), 2, ["--layers is too small"]),
        (("--vocab", "10"), 2, ["--vocab is too small", "257"]),
        (("--context", "1"), 2, ["--context is too small"]),
        (("--batch-size", "0"), 2, ["--batch-size is too small"]),
        (("--warmup", "-1"), 2, ["--warmup is too small"]),
        (("--learning-rate", "0"), 2, ["--learning-rate is too small", "above 0"]),
        (("--learning-rate", "nan"), 2, ["--learning-rate is not a number"]),
        (("--decay", "1.5"), 2, ["--decay is too large", "above 0, at most 1"]),
        (("--betas", "0.9"), 2, ["--betas must be two numbers"]),
        (("--threads", "0"), 2, ["--threads"]),
        (("--device", "abacus"), 27, ["unknown device"]),
        (("--text", "missing.txt"), 24, ["no such text file"]),
        (("--text", "stdlib:exam"), 24, ["exam"]),
    ],
)
def test_a_training_that_cannot_be(train, tmp_path, flags, code, said):
    train(*flags).refuses(code, *said)
    assert not (tmp_path / "run").exists()


def test_texts_that_cannot_be_trained_on(train, tmp_path):
    import numpy as np

    (tmp_path / "short.txt").write_text("for item in items: total")
    train("--text", tmp_path / "short.txt").refuses(16, "does not fill one batch", "smaller --batch-size")
    np.save(tmp_path / "ids.npy", np.arange(500))
    train("--text", tmp_path / "ids.npy").refuses(2, "must be text, not token ids")


def test_folders_of_something_else(train, material, tmp_path):
    assert train("--ratios", "0.2").code == 0
    before = contents(tmp_path / "run")
    train("--ratios", "0.2", "--seed", "1").refuses(2, "other options or another text", "another folder")
    train("--ratios", "0.2", "--text", material.calibration).refuses(2, "other options or another text")
    assert contents(tmp_path / "run") == before
    (tmp_path / "file").write_text("mine")
    train(out=tmp_path / "file").refuses(32, "the output folder is a file")
    (tmp_path / "run" / "state.pt").write_bytes(b"PK")
    train("--ratios", "0.2").refuses(12, "state.pt", "delete that file")
    (tmp_path / "run" / "pretrain.json").write_text("{")
    train("--ratios", "0.2").refuses(21, "pretrain.json", "damaged")


def test_a_tokenizer_left_by_other_options_is_not_used(train, tmp_path):
    assert train("--vocab", "280", "--ratios", "0.2").code == 0
    for name in ("pretrain.json", "state.pt"):  # as if killed before it was known what is trained here
        (tmp_path / "run" / name).unlink()
    assert train("--ratios", "0.2").code == 0
    vocabulary = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) > 280


@pytest.mark.parametrize("file", ["tokenizer/tokenizer.json", "trunk/checkpoint-8/model.safetensors", "state.pt"])
def test_recovery_from_a_full_disk(train, tmp_path, file):
    assert train(out=tmp_path / "complete").code == 0
    limit = (tmp_path / "complete" / file).stat().st_size - 1
    with largest_file(limit):
        answer = train()
    answer.refuses(22, "no space left", "free some space and repeat the command")
    assert not (tmp_path / "run" / file).exists()
    answer = train()
    assert (answer.code, answer.err) == (0, "")
    assert contents(tmp_path / "run") == contents(tmp_path / "complete")


@pytest.mark.slow
def test_recovery_from_ctrl_c(train, material, tmp_path):
    flags = ("--ratios", "0.5,1,20")
    assert train(*flags, out=tmp_path / "complete").code == 0
    command = ("pretrain", tmp_path / "run", "--text", material.evaluation, *TINY, *flags)
    process = start(*command)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "state.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert err.strip().splitlines() == [
        "ptq-eval: interrupted | what is done is kept; the same command goes on from there"
    ]
    assert (process.returncode, out) == (130, "")
    assert len(contents(tmp_path / "run")) < len(contents(tmp_path / "complete"))
    answer = train(*flags)
    assert (answer.code, answer.err) == (0, "")
    assert contents(tmp_path / "run") == contents(tmp_path / "complete")


STUDY = """
text = "{text}"
[run]
width = 8
layers = 1
vocab = 300
context = 16
batch_size = 4
warmup = 4
validation_windows = 4
ratios = [1, 2]
[[grid]]
weights = ["full", 4]
ema = [0.9]
"""


def test_a_study_is_trained_and_its_runs_measured(ptq_eval, material, quick, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.format(text=material.evaluation))
    command = ("pretrain", "--study", tmp_path / "study.toml", "-o", tmp_path / "out", "--device", "cpu")
    assert "0 of 2 runs complete, 0 of 4 checkpoints saved" in ptq_eval(*command, "--status").out
    answer = ptq_eval(*command, "--threads", "1")
    assert (answer.code, answer.err) == (0, "")
    assert "2 of 2 runs complete, 4 of 4 checkpoints saved" in ptq_eval(*command, "--status").out
    inspected = ptq_eval("inspect", tmp_path / "out" / "runs")
    assert (inspected.code, inspected.err) == (0, "")
    assert "averaged" in inspected.out
    ptq_eval(*command, "--width", "16").refuses(2, "--width", "study file")
    ptq_eval(*command[:3]).refuses(2, "output folder")


def test_one_run_needs_a_folder(ptq_eval):
    ptq_eval("pretrain").refuses(2, "OUT")
    ptq_eval("pretrain", "out", "--status").refuses(2, "--study")
