"""Contract: an environment of its own sees ours behind its packages, and what pip refuses is kept as the reason."""

import json
import subprocess
import zipfile

import pytest

from ptq_eval.backends.environments import (
    Distrust,
    State,
    backend_of,
    distrusted,
    home,
    install,
    interpreter,
    remember,
    remove,
    status_of,
)
from ptq_eval.errors import BackendError

METADATA = "Metadata-Version: 2.1\nName: no-such-distribution\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A folder of wheels that pip looks into, and nowhere else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


def write_wheel(folder):
    with zipfile.ZipFile(folder / "no_such_distribution-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("no_such_module.py", "VALUE = 1\n")
        wheel.writestr("no_such_distribution-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("no_such_distribution-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("no_such_distribution-1.0.dist-info/RECORD", "")


def test_an_environment_shares_our_torch_and_is_removed(fakes, offline):
    write_wheel(offline)
    status = install("absent")
    assert (status.state, status.version) == (State.INSTALLED, "1.0")
    code = "import no_such_module, torch; print(torch.__file__)"
    done = subprocess.run([str(interpreter(home() / "absent")), "-c", code], capture_output=True, text=True, check=True)
    import torch

    assert done.stdout.strip() == torch.__file__
    assert remove("absent")
    assert status_of(backend_of("absent")).state is State.ABSENT


def test_an_environment_serves_whoever_has_the_same_torch_while_what_it_was_made_on_is_there(
    fakes, offline, tmp_path, monkeypatch
):
    write_wheel(offline)
    install("absent")
    monkeypatch.setattr("sys.prefix", "/another/environment")
    assert status_of(backend_of("absent")).state is State.INSTALLED
    (shared,) = (home() / "absent").rglob("zz_shared.pth")
    theirs = shared.read_text()
    shared.write_text(str(tmp_path / "gone"))
    status = status_of(backend_of("absent"))
    assert status.state is State.STALE
    assert "have gone" in status.why_not
    assert "ptq-eval backends install absent" in status.why_not
    shared.write_text(theirs)
    record = home() / "absent" / "installed.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "fingerprint": "of another torch"}))
    status = status_of(backend_of("absent"))
    assert status.state is State.STALE
    assert "another torch" in status.why_not


def test_what_pip_refuses_is_kept_as_the_reason(fakes, offline):
    with pytest.raises(BackendError, match="no-such-distribution"):
        install("absent")
    status = status_of(backend_of("absent"))
    assert status.state is State.FAILED
    assert "No matching distribution" in status.why_not or "Could not find a version" in status.why_not


def test_an_index_that_does_not_answer_is_no_missing_version(fakes, monkeypatch):
    for name, value in (("PIP_INDEX_URL", "https://127.0.0.1:9/simple"), ("PIP_RETRIES", "1"), ("PIP_TIMEOUT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(BackendError, match="the package index cannot be reached"):
        install("absent")


def test_a_damaged_record_of_an_installation_is_none(fakes, offline):
    write_wheel(offline)
    install("absent")
    record = home() / "absent" / "installed.json"
    whole = record.read_text()
    for damage in ("{", "[]", '{"version": 3}', '{"fingerprint": 1, "version": "", "error": ""}'):
        record.write_text(damage)
        assert status_of(backend_of("absent")).state is State.ABSENT, damage
    record.write_text(whole)
    assert status_of(backend_of("absent")).state is State.INSTALLED


def test_an_environment_without_its_interpreter_is_stale(fakes, offline):
    write_wheel(offline)
    install("absent")
    for path in (home() / "absent" / "bin").glob("python*"):
        path.unlink()
    status = status_of(backend_of("absent"))
    assert status.state is State.STALE
    assert status.why_not == "its interpreter has gone: ptq-eval backends install absent"


def test_what_a_check_found_is_forgotten_with_the_installation_that_it_was_of(fakes, offline):
    write_wheel(offline)
    install("absent")
    backend = backend_of("absent")
    remember(backend, "1.0", {"rtn": Distrust("failed", "the reason")})
    assert distrusted(backend, "1.0")
    install("absent")
    assert distrusted(backend, "1.0") is None


def test_nothing_is_imported_to_plan_a_run_with_backends(python):
    code = """
import sys
from ptq_eval.config.run import RunConfig
config = RunConfig(quantizers=("hqq:hqq", "bitsandbytes:nf4", "gptqmodel"))
print(config.quantizers)
print(*{"torch", "hqq", "bitsandbytes", "gptqmodel", "transformers"} & set(sys.modules))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["('hqq:hqq', 'bitsandbytes:nf4', 'gptqmodel:gptq')", ""]
