"""Recovery: Ctrl-C in the middle of a real process ends it in one line, and the same command goes on from there."""

import signal
import time

import pytest

from tests.cli.support import numbers, records, start

GRID = ("--quantizers", "rtn,gptq", "--bits", "2,3,4,6", "--eval-windows", "120", "--calib-windows", "10")
LINE = "ptq-eval: interrupted | what is done is kept; the same command goes on from there"


@pytest.mark.slow
def test_recovery_from_ctrl_c(ptq_eval, material, quick, tmp_path):
    assert ptq_eval("run", material.run, "-o", tmp_path / "complete", *quick, *GRID).code == 0
    whole = numbers(tmp_path / "complete")
    command = ("run", material.run, "-o", tmp_path / "out", *quick, *GRID)
    process = start(*command)
    deadline = time.monotonic() + 300
    while not records(tmp_path / "out") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert err.strip().splitlines() == [LINE]
    assert (process.returncode, out) == (130, "")
    kept = numbers(tmp_path / "out")
    assert 0 < len(kept) < len(whole)
    assert kept == whole[: len(kept)]
    answer = ptq_eval(*command)
    assert (answer.code, answer.err) == (0, "")
    assert numbers(tmp_path / "out") == whole
    for name in ("degradation.csv", "fit.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "complete" / name).read_bytes()


def test_ctrl_c_while_weights_are_read(ptq_eval, material, quick, tmp_path, monkeypatch):
    from ptq_eval.checkpoints import weights

    def interrupted(files):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "read_weights", interrupted)
    for command in ("run", "inspect"):
        answer = ptq_eval(command, material.run)
        assert (answer.code, answer.err.strip()) == (130, LINE)
