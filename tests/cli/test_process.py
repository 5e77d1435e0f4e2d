"""Contract: the command line sets how its own threads wait, keeps what the user set, and the library sets nothing; a
closed pipe ends no command."""

import os
import subprocess
import sys

import pytest

from ptq_eval.errors import DataFileError

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
PREPARED = f"import sys; from ptq_eval.cli.process import prepare_process; prepare_process(); {SHOW}"


def run(code, **changes):
    """What `code` prints in a process in which neither variable is set but by `changes`."""
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **changes}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("set_before", "expected"),
    [
        ({}, "3000 None False"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None False"),
        ({"OMP_WAIT_POLICY": "active"}, "None active False"),
    ],
)
def test_waiting_threads_spin_briefly_unless_the_user_chose(set_before, expected):
    assert run(PREPARED, **set_before) == expected


def test_importing_the_library_changes_no_environment():
    assert run(f"import sys, ptq_eval.jobs.run, ptq_eval.cli.main; {SHOW}") == "None None False"


def test_a_closed_pipe_ends_no_command():
    code = f"{PREPARED}; print('x' * 1_000_000, flush=True); print('done', file=sys.stderr)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        one.stdout.close()
        assert one.stderr.read() == "done\n"
    assert one.returncode == 0


def test_a_closed_pipe_keeps_the_exit_code_of_an_error():
    command = [sys.executable, "-m", "ptq_eval", "fit", "--data", "nowhere.csv", "--law", "chinchilla"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        one.stdout.close()
        one.stderr.close()
    assert one.returncode == DataFileError.exit_code
