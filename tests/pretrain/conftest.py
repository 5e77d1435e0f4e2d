from __future__ import annotations

import pytest

LINES = [
    "def area(radius):",
    "    return 3.14 * radius ** 2",
    "for item in items:",
    "    total += item",
    "# naïve — 漢字",
]


@pytest.fixture(scope="session")
def text() -> str:
    """Repetitive enough that a model of a few hundred parameters learns something of it in a few steps."""
    return "\n".join(LINES[(i * i + i // 3) % len(LINES)] + f"  # {i % 17}" for i in range(1500))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums over threads may differ in the last bit with the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
