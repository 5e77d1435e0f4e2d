"""Contract of `--prune`: few checkpoints are on the disk at a time, results are the same, and nothing else goes."""

import json
from collections import Counter

import pytest

import ptq_eval
from ptq_eval.checkpoints import staging
from ptq_eval.errors import HubError, OptionError, PtqEvalError
from ptq_eval.jobs import parts
from ptq_eval.results.store import Store
from tests.checkpoints.support import nanochat_run
from tests.support.hub import commit_of

MODEL = "EleutherAI/pythia-70m"
pytestmark = pytest.mark.usefixtures("in_turn")


@pytest.fixture
def in_turn(request, monkeypatch):
    """Without `ahead`, each revision is fetched in its turn: the process that fetches the next one, for which there is
    test_prefetch.py, takes longer than measuring it."""
    if "ahead" not in request.fixturenames:
        monkeypatch.setattr(parts.Prefetch, "begin", lambda self, near: None)


@pytest.fixture
def ahead():
    """The next revision is fetched while one is measured."""


@pytest.fixture
def suite(hub, revisions, small, monkeypatch):
    """run(**options) -> the result of four revisions of a suite, with the most revisions that had weights at a time."""
    for name, folder in revisions.items():
        hub.add(MODEL, name, folder)
    hub.most = 0

    def run(out, root="suite:pythia-70m", **changes):
        def look(what, done, total):
            hub.most = max(hub.most, len(weights(hub)))

        options = {**small, "quantizers": ("rtn",), "bits": (4,), "checkpoint_count": 4, "write_report": False}
        return ptq_eval.run(root, out, progress=look, **{**options, **changes})

    hub.run = run
    return hub


def weights(hub):
    """The snapshots with weights in the cache."""
    return sorted(path.parent.name for path in hub.cache.glob("models--*/snapshots/*/model.safetensors"))


def blobs(hub):
    return [path for path in hub.cache.glob("models--*/blobs/*") if path.is_file()]


def losses(result):
    """δ by step and bits, of what was measured."""
    rows = [row for row in result.table.to_dict("records") if row["status"] == "ok" and row["bits"] == row["bits"]]
    return {(row["step"], row["bits"]): row["delta"] for row in rows}


def test_two_revisions_at_a_time_with_the_same_results(suite, ahead, tmp_path):
    kept = suite.run(tmp_path / "kept")
    assert len(weights(suite)) == 4
    for commit in weights(suite):  # an empty cache again
        from ptq_eval.checkpoints import remote

        remote.remove(remote.snapshot(MODEL, commit))
    assert blobs(suite) == []
    suite.most = 0
    pruned = suite.run(tmp_path / "pruned", prune=True)
    assert suite.most <= 2
    assert blobs(suite) == []
    assert weights(suite) == []
    assert losses(pruned) == losses(kept)
    assert list(pruned.table["step"]) == list(kept.table["step"])
    assert not list((tmp_path / "pruned").glob(".copies*"))
    run = json.loads((tmp_path / "pruned" / "run.json").read_text())
    steps = {c["revision"]: c["commit"] for c in run["checkpoints"]}
    assert steps == {
        name: commit_of(suite.repositories[MODEL][name]) for name in ("step1", "step8", "step64", "step1000")
    }


@pytest.mark.slow
def test_as_many_at_a_time_as_processes(suite, tmp_path):
    pruned = suite.run(tmp_path / "out", prune=True, jobs=2, checkpoint_count=3)
    assert 2 <= suite.most <= 3
    assert weights(suite) == []
    assert len(losses(pruned)) == 3


def test_what_was_there_before_stays(suite, tmp_path):
    from huggingface_hub import hf_hub_download, snapshot_download

    whole = snapshot_download(MODEL, revision="step8")
    hf_hub_download(MODEL, "config.json", revision="step64")
    before = {path: path.stat().st_mtime_ns for path in suite.cache.rglob("*") if path.is_file()}
    suite.run(tmp_path / "out", prune=True)
    assert weights(suite) == [whole.rpartition("/")[2]]
    after = {path for path in suite.cache.glob("models--*/snapshots/*/*")}
    assert {path for path in before if "snapshots" in path.parts} == after
    assert all(path.exists() for path in before)


def test_a_finished_run_fetches_no_weights_and_a_larger_one_each_once(suite, ahead, tmp_path):
    suite.run(tmp_path / "out", prune=True)
    assert Counter(suite.fetched()).most_common(1)[0][1] == 1
    first = len(suite.fetched())
    assert first == 4
    again = suite.run(tmp_path / "out", prune=True)
    assert len(suite.fetched()) == first
    assert len(losses(again)) == 4
    more = suite.run(tmp_path / "out", prune=True, bits=(3, 4))
    assert len(suite.fetched()) == 2 * first
    assert len(losses(more)) == 8
    further = suite.run(tmp_path / "out", prune=True, bits=(3, 4), checkpoint_count=5)
    assert len(suite.fetched()) == 2 * first + 1
    assert len(losses(further)) == 10
    assert blobs(suite) == []


def test_a_revision_that_has_moved_is_fetched_and_refused(suite, revisions, tmp_path):
    suite.run(tmp_path / "out", prune=True)
    suite.add(MODEL, "step8", revisions["step512"])
    with pytest.raises(PtqEvalError, match="another trajectory"):
        suite.run(tmp_path / "out", prune=True)


def test_what_a_killed_run_has_left_is_deleted(suite, tmp_path):
    """The copies of checkpoints that the next run measures, and of those that it does not."""
    from huggingface_hub import snapshot_download

    left = [snapshot_download(MODEL, revision=name) for name in ("step8", "step512")]
    Store(tmp_path / "out").write_copies([{"format": "hub", "path": path, "before": []} for path in left])
    suite.run(tmp_path / "out", prune=True)
    assert blobs(suite) == []


def test_an_error_deletes_what_was_fetched(suite, tmp_path):
    with pytest.raises(PtqEvalError, match="no such text file"):
        suite.run(tmp_path / "out", prune=True, eval_text="missing.txt")
    assert blobs(suite) == []


def test_a_checkpoint_that_is_damaged_does_not_stop_the_others(suite, tmp_path):
    suite.repositories[MODEL]["step8"]["model.safetensors"] = b"nothing"
    result = suite.run(tmp_path / "out", prune=True)
    assert [type(error).__name__ for error in result.problems] == ["UnreadableCheckpointError"]
    rows = {(row["step"], row["status"]) for row in result.table.to_dict("records")}
    assert rows == {(1, "ok"), (8, "excluded"), (64, "ok"), (1000, "ok")}
    assert blobs(suite) == []
    suite.gated.add(MODEL)
    with pytest.raises(PtqEvalError, match=r"gated.*and 3 more"):
        suite.run(tmp_path / "other", prune=True)


def test_shards_share_the_checkpoints(suite, tmp_path):
    first = suite.run(tmp_path / "out", prune=True, shard=(1, 2))
    assert {step for step, _ in losses(first)} == {1, 64}
    both = suite.run(tmp_path / "out", prune=True, shard=(2, 2))
    assert {step for step, _ in losses(both)} == {1, 8, 64, 1000}
    with pytest.raises(OptionError, match="at most 4"):
        suite.run(tmp_path / "out", prune=True, shard=(5, 5))


def test_several_runs_need_what_is_chosen_for_all_of_them(suite, revisions, tmp_path):
    suite.add("org/other", "step5", revisions["step512"])
    roots = ["hub:org/other@step5", f"hub:{MODEL}@step8"]
    with pytest.raises(OptionError, match="add --group-size"):
        suite.run(tmp_path / "out", roots, prune=True, group_size="auto", checkpoint_count=None)
    result = suite.run(tmp_path / "out", roots, prune=True, checkpoint_count=None)
    assert len(losses(result)) == 2


def test_conversions_are_deleted_too_and_those_of_before_are_kept(tmp_path, small, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = nanochat_run(tmp_path / "d3", "E", (100, 200, 300))
    options = {**small, "quantizers": ("rtn",), "bits": (4,), "eval_text": _ids(tmp_path), "write_report": False}
    options |= {"calib_text": options["eval_text"]}
    from ptq_eval.checkpoints import discover, local_path

    before = local_path(discover([folder])[1])
    ptq_eval.run(folder, tmp_path / "out", prune=True, **options)
    assert list(staging.home().iterdir()) == [before]
    assert len(list(folder.iterdir())) == 6


def _ids(folder):
    import numpy as np

    path = folder / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, 61, 4000).astype(np.uint16))
    return f"{path}#any"


def test_folders_are_measured_as_without(measure, trajectory, small, tmp_path):
    whole = ptq_eval.run(trajectory, tmp_path / "whole", write_report=False, **small)
    files = sorted(trajectory.rglob("*"))
    pruned = measure(prune=True)
    assert losses(pruned) == losses(whole)
    assert sorted(trajectory.rglob("*")) == files


@pytest.mark.parametrize("options", [{"executor": "ray"}])
def test_a_cluster_shares_the_files(suite, tmp_path, options):
    with pytest.raises(OptionError, match="--prune is for one machine"):
        suite.run(tmp_path / "out", prune=True, **options)


def test_a_watch_neither_chooses_nor_deletes(trajectory, tmp_path, small):
    from ptq_eval.jobs.watch import watch

    for own in ({"checkpoint_count": 2}, {"prune": True}):
        with pytest.raises(OptionError, match="a watch measures"):
            watch(trajectory, tmp_path / "out", **{**small, **own})


def test_the_hub_is_away(suite, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="the network"):
        suite.run(tmp_path / "out", prune=True)
