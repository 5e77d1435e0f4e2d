"""Contract: a worker is ended in time, within its memory, and does not leave children."""

import pytest
import torch
from safetensors.torch import save_file

from ptq_eval import units
from ptq_eval.backends.base import Cell
from ptq_eval.backends.environments import place_of
from ptq_eval.backends.process import Limits, run


@pytest.fixture
def exchange(tmp_path):
    folder = tmp_path / "exchange"
    folder.mkdir()
    save_file({"a": torch.randn(8, 32, generator=torch.Generator().manual_seed(0))}, folder / "weights.safetensors")
    save_file({"probe": torch.zeros(1, 4, dtype=torch.long)}, folder / "ids.safetensors")
    return folder


def answers(folder, *methods, **limits):
    cells = [Cell(method, 4, 16, False) for method in methods]
    return list(run(place_of("fake"), folder, cells, {"a": 32}, limits=Limits(**limits)))


def test_a_worker_that_hangs_is_ended_and_the_next_cell_is_done(fakes, exchange):
    sleeping, good = answers(exchange, "sleeps", "good", seconds=25)
    assert "no answer within 25 s" in sleeping.error
    assert good.error == ""
    assert good.facts["seconds"] >= 0
    assert set(good.facts["versions"]) >= {"torch"}


def test_a_worker_that_is_not_ready_in_time_fails_in_all_cells(fakes, exchange):
    found = answers(exchange, "good", "good", seconds=0.2)
    assert [("no answer within 0.2 s" in answer.error) for answer in found] == [True, True]


def test_a_worker_that_takes_too_much_memory_is_ended(fakes, exchange):
    (answer,) = answers(exchange, "good", seconds=600, memory=units.read("50MB", units.BYTES))
    assert "took more than 50M bytes of memory" in answer.error
