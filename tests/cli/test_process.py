"""Contract: the command line sets how its own threads wait, keeps what the user set, and the library sets nothing."""

import pytest

SHOW = "import os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
PREPARED = f"import sys; from ptq_eval.cli.process import prepare_process; prepare_process(); {SHOW}"


@pytest.mark.parametrize(
    ("set_before", "expected"),
    [
        ({}, "3000 None False"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None False"),
        ({"OMP_WAIT_POLICY": "active"}, "None active False"),
    ],
)
def test_waiting_threads_spin_briefly_unless_the_user_chose(python, set_before, expected):
    done = python("-c", PREPARED, **set_before)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected


def test_importing_the_library_changes_no_environment(python):
    done = python("-c", f"import sys, ptq_eval.api, ptq_eval.cli.main; {SHOW}")
    assert done.stdout.strip() == "None None False"
