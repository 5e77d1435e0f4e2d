"""Contract of the hook for any loop: checkpoints are copied, measured beside the loop, and cleaned up."""

from __future__ import annotations

import json
import shutil
import time

import pandas as pd
import pytest

from ptq_eval.errors import OptionError, UnknownPluginError
from ptq_eval.training import Monitor

pytestmark = pytest.mark.slow


@pytest.fixture
def saved_at(trajectory, tmp_path):
    """saved_at(step) -> a folder that is written again at each save, as by loops that keep the last alone."""

    def save(step):
        folder = tmp_path / "last"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trajectory / f"checkpoint-{step}", folder)
        (folder / "optimizer.pt").write_bytes(b"much")
        (folder / "trainer_state.json").unlink()
        return folder

    return save


def test_a_loop_is_measured_and_a_new_monitor_goes_on(saved_at, quick, tmp_path):
    logged, out = [], tmp_path / "out"
    with Monitor(out, name="mine", log=lambda *numbers: logged.append(numbers), budget=1, **quick) as monitor:
        for step in (100, 200):
            monitor.saved(saved_at(step), step=step, tokens=step * 2000)
            deadline = time.monotonic() + 300
            while step not in [at for _, at in logged] and time.monotonic() < deadline:
                assert "optimizer.pt" not in [path.name for path in (out / "copies" / "mine").rglob("*")]
                monitor.poll()
                time.sleep(0.05)
    assert [step for _, step in logged] == [100, 200]
    assert all("ptq/delta/rtn_3bit" in numbers for numbers, _ in logged)
    with Monitor(out, name="mine", budget=1, **quick) as monitor:
        monitor.saved(tmp_path / "missing", step=300, tokens=100_000)
        monitor.saved(saved_at(400), step=400, tokens=800_000)
        assert monitor._copying is not None
        monitor._copying.join()
        with pytest.warns(UserWarning, match="cannot be copied"):
            monitor.poll()
    table = pd.read_csv(out / "degradation.csv")
    assert set(zip(table["run"], table["step"], table["tokens"])) == {("mine", s, s * 2000) for s in (100, 200, 400)}
    assert not (out / "copies").exists()


def test_the_end_of_the_other_process_is_warned_of_once(saved_at, quick, tmp_path):
    monitor = Monitor(tmp_path / "out", budget=1, **quick)
    monitor._process.kill()
    monitor._process.wait()
    monitor.saved(saved_at(100), step=100, tokens=200_000)
    with pytest.warns(UserWarning, match="measuring ended with exit code -9, see .*watch.log"):
        monitor.close()
    assert json.dumps(monitor.poll()) == "[]"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"bitz": 4}, OptionError), ({"budget": 2}, OptionError), ({"quantizers": "gtpq"}, UnknownPluginError)],
)
def test_a_wrong_option_is_refused_at_once(quick, tmp_path, wrong, error):
    with pytest.raises(error):
        Monitor(tmp_path / "out", **{**quick, **wrong})
    assert not (tmp_path / "out").exists()
