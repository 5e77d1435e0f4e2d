"""What the tests of jobs on several machines share."""

from ptq_eval.results.store import Store

COMPARED = ("nll", "n_tokens", "n_bytes", "kl", "agree", "windows", "status")


def numbers(out):
    """{key: what was measured} of all records; every key once."""
    store = Store(out)
    found = {m.trial.key(): tuple(getattr(m, name) for name in COMPARED) for m in store.measurements()}
    lines = sum(len(path.read_text().splitlines()) for path in store.records.glob("*.jsonl"))
    assert lines == len(found)
    return found
