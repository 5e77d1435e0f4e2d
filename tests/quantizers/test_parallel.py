"""Oracle and contract: rows solved in threads give what one thread gives, and leave torch as it was."""

import contextlib
import threading

import pytest
import torch

from quantizers import LayerStats, QuantizationError, Scheme, get_quantizer
from quantizers.parallel import over_rows
from quantizers.testing import sample_layer

OPTIONS = [{}, {"act_order": True}, {"static_groups": True, "act_order": True}, {"group_scale_from": "current"}]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def solved(options, layers, schemes, stats):
    return get_quantizer("gptq", **options).quantize_grid(layers, schemes, stats)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_in_threads_give_the_codes_of_one_thread(options, two_threads, monkeypatch):
    """Also where a part of the rows begins inside a layer, with dead columns and ragged groups."""
    weight, inputs = sample_layer(150, 40)
    inputs[:, 7] = 0
    stats = LayerStats.from_inputs(inputs)
    layers = list(weight.split([50, 3, 97]))
    schemes = [Scheme(2, 16), Scheme(4, 16), Scheme(3, 12, symmetric=True), Scheme(4, None)]
    alone = solved(options, layers, schemes, stats)
    monkeypatch.setattr("quantizers.gptq._MIN_ROWS_PER_THREAD", 64)
    together = solved(options, layers, schemes, stats)
    for some, others in zip(alone, together):
        assert [len(q.codes) for q in others] == [50, 3, 97]
        for one, other in zip(some, others):
            assert (one.codes == other.codes).float().mean() > 0.99  # sums of another order may round another way
            torch.testing.assert_close(one.scale, other.scale, rtol=1e-3, atol=1e-4)
            assert one.report == other.report


@pytest.mark.parametrize(
    ("rows", "threads", "multiple"), [(1, 4, 64), (64, 2, 64), (200, 2, 64), (10, 3, 1), (5, 0, 2)]
)
def test_ranges_cover_all_rows_in_order(rows, threads, multiple):
    ranges = over_rows(lambda first, last: (first, last), rows, threads, multiple=multiple)
    assert [row for first, last in ranges for row in range(first, last)] == list(range(rows))
    assert len(ranges) <= max(threads, 1)
    assert all(first % multiple == 0 for first, _ in ranges)


def test_threads_of_torch_rest_meanwhile_and_come_back(two_threads):
    assert over_rows(lambda *_: torch.get_num_threads(), 128, 2) == [1, 1]
    assert over_rows(lambda *_: torch.get_num_threads(), 64, 2) == [2]
    with pytest.raises(QuantizationError, match="broken"):
        over_rows(broken, 128, 2)
    assert torch.get_num_threads() == 2


def test_calls_at_once_keep_torchs_count(two_threads):
    """One caller starts while another computes and ends after it; a third fails; a fourth is a new thread."""
    asked, begun, ready = threading.Barrier(3), threading.Event(), threading.Event()
    counts: dict[str, object] = {}

    def first(start, _):
        begun.set()
        ready.wait(60)
        return torch.get_num_threads()

    def caller(name, task, new=False):
        if not new:
            torch.get_num_threads()  # a thread takes over the count when it first asks
            asked.wait(60)
            begun.wait(60) if task is not first else None
        ready.set() if name == "second" else None
        with contextlib.suppress(QuantizationError):
            counts[name] = over_rows(task, 128, 2)
        counts[f"{name} after"] = torch.get_num_threads()

    count = lambda *_: torch.get_num_threads()
    callers = [
        threading.Thread(target=caller, args=args) for args in (("first", first), ("second", count), ("third", broken))
    ]
    for each in callers:
        each.start()
    begun.wait(60)
    new = threading.Thread(target=caller, args=("new", count, True))
    new.start()
    for each in (*callers, new):
        each.join()
    assert counts["first"] == counts["second"] == [1, 1]
    assert [counts[f"{name} after"] for name in ("first", "second", "third")] == [2, 2, 2]
    later = threading.Thread(target=lambda: counts.update(later=torch.get_num_threads()))
    later.start()
    later.join()
    assert (counts["later"], torch.get_num_threads()) == (2, 2)


def test_a_call_within_a_task_stays_in_its_thread(two_threads):
    within = lambda *_: over_rows(lambda first, last: (first, last), 128, 2)
    assert over_rows(within, 128, 2) == [[(0, 128)]] * 2


def broken(first, last):
    raise QuantizationError("broken")


@pytest.mark.parametrize("rows", [1, 2])
def test_no_argument_is_changed(rows):
    """A weight of one row is its own transpose in memory."""
    weight, inputs = sample_layer(rows, 24)
    inputs[:, 3] = 0
    stats = LayerStats.from_inputs(inputs)
    before, hessian = weight.clone(), stats.hessian
    solved({}, [weight], [Scheme(3, 8)], stats)
    assert torch.equal(weight, before)
    assert torch.equal(stats.hessian, hessian)
