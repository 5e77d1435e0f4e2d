"""What the processes that tests start have in common.

The file `conftest.py` needs it in every process of pytest, also where no test runs, so it imports nothing large.
"""

from __future__ import annotations

import os


def environ(**changes: str) -> dict[str, str]:
    """This process's environment on one thread and without a network, with changes."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **changes}
