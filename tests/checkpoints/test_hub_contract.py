"""Contract of roots on the hub: revisions by pattern and by suite, what is fetched, and what is said where it fails.

Against an HTTP server on this machine that speaks the hub's API, through `huggingface_hub`.
"""

import pytest

from ptq_eval.checkpoints import discover, local_path, remote, small_path, verify_all
from ptq_eval.checkpoints.catalogue import download
from ptq_eval.checkpoints.named import resolve
from ptq_eval.checkpoints.suites import SUITES
from ptq_eval.errors import HubError, NoCheckpointError
from tests.support.hub import commit_of

PYTHIA = "EleutherAI/pythia-70m"


@pytest.fixture
def pythia(hub, revisions):
    """The hub with six revisions of a model, and `main`."""
    for name, folder in revisions.items():
        hub.add(PYTHIA, name, folder)
    hub.add(PYTHIA, "main", revisions["step1000"])
    return hub


def steps(checkpoints):
    return [checkpoint.step for checkpoint in checkpoints]


def test_a_suite_is_every_revision_that_is_a_checkpoint_of_it(pythia, revisions):
    pythia.add(PYTHIA, "experiment-7", revisions["step8"])
    found = discover(["suite:pythia-70m"])
    assert steps(found) == [0, 1, 8, 64, 512, 1000]
    assert [c.tokens for c in found][1:3] == [2_097_152, 8 * 2_097_152]
    assert {c.run for c in found} == {PYTHIA}
    assert found[3].location == f"hub:{PYTHIA}@step64"
    assert found[3].commit == commit_of(pythia.repositories[PYTHIA]["step64"])
    assert pythia.asked("/api/models/") == [f"/api/models/{PYTHIA}/refs"]


def test_a_number_of_checkpoints_is_spaced_evenly_in_log_d(pythia):
    for root in ("suite:pythia-70m", f"hub:{PYTHIA}", f"hub:{PYTHIA}@step*"):
        found = discover([root], overrides={"checkpoint_count": 4})
        assert steps(found) == [1, 8, 64, 1000]
    assert steps(discover([f"hub:{PYTHIA}"])) == [None]  # main
    assert steps(discover([f"hub:{PYTHIA}@{{step8,step1*}}"])) == [1, 8, 1000]


def test_the_weights_are_fetched_when_a_checkpoint_is_opened_and_verified(pythia, revisions):
    found = discover([f"hub:{PYTHIA}@{{step1,step8}}"])
    assert pythia.requests == []
    verified = verify_all(found)
    assert [c.problems for c in verified] == [(), ()]
    assert all(c.weights_sha for c in verified)
    assert len(pythia.fetched()) == 2
    folder = local_path(found[0])
    assert (folder / "model.safetensors").read_bytes() == (revisions["step1"] / "model.safetensors").read_bytes()
    assert len(pythia.fetched()) == 2


def test_configuration_and_tokenizer_are_fetched_without_the_weights(pythia):
    folder = small_path(discover([f"hub:{PYTHIA}@step8"])[0])
    assert (folder / "config.json").is_file()
    assert (folder / "tokenizer.json").is_file()
    assert not (folder / "model.safetensors").exists()
    assert pythia.fetched() == []


def test_only_what_a_model_is_loaded_from_is_wanted():
    names = ["config.json", "onnx/model.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt", "vocab.txt"]
    assert remote.wanted(names) == ["config.json", "model.safetensors", "vocab.txt"]
    names.remove("model.safetensors")
    assert remote.wanted(names) == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_pickles_are_fetched_where_there_are_no_safetensors(pythia):
    pythia.repositories["org/old"] = {"step5": {"config.json": b"{}", "pytorch_model.bin": b"123", "tf_model.h5": b"4"}}
    folder = local_path(discover(["hub:org/old@step5"])[0])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


@pytest.mark.parametrize("times", [1, 3])
def test_a_broken_download_goes_on_where_it_stopped(pythia, revisions, monkeypatch, times):
    """What had come in whole pieces (10 MB, here less) is not asked for again."""
    from huggingface_hub import constants

    piece = 1000
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", piece)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    pythia.breaking["model.safetensors"] = times
    folder = local_path(discover([f"hub:{PYTHIA}@step8"])[0])
    whole = (revisions["step8"] / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == whole
    asked = [rest for method, path, rest in pythia.requests if method == "GET" and "/large/" in path]
    starts = [0]
    for _ in range(times):
        starts.append(starts[-1] + (len(whole) - starts[-1]) // 2 // piece * piece)
    assert asked == [None, *(f"bytes={start}-" for start in starts[1:])]


def test_a_download_that_never_comes_through_is_one_line(pythia, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    pythia.repositories["org/one"] = {"step8": {"config.json": b"{}", "model.safetensors": b"1"}}
    pythia.breaking["model.safetensors"] = 1000
    (found,) = verify_all(discover(["hub:org/one@step8"]))
    assert found.fatal[0].code == "unreadable"
    assert "hub:org/one@step8 cannot be fetched" in str(found.fatal[0])


def test_the_size_of_a_choice_counts_what_revisions_share_once(pythia, revisions):
    found = discover(["suite:pythia-70m"], overrides={"checkpoint_count": 3})
    sizes = download(found)
    each = [sum(path.stat().st_size for path in revisions[c.revision].iterdir()) for c in found]
    assert list(sizes.each) == each
    weights = sum((revisions[c.revision] / "model.safetensors").stat().st_size for c in found)
    shared = each[0] - (revisions[found[0].revision] / "model.safetensors").stat().st_size
    assert sizes.total == weights + shared
    assert pythia.fetched() == []


def test_offline_the_cache_is_the_hub(pythia, monkeypatch):
    from huggingface_hub import constants

    for name in ("step8", "step64", "step1000"):
        local_path(discover([f"hub:{PYTHIA}@{name}"])[0])
    small_path(discover([f"hub:{PYTHIA}@step512"])[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    del pythia.requests[:]
    found = discover(["suite:pythia-70m"])
    assert steps(found) == [8, 64, 1000]
    assert [c.problems for c in verify_all(found)] == [()] * 3
    assert pythia.requests == []
    assert None not in download(found).each  # their listings are in the cache too
    (missing,) = verify_all(discover([f"hub:{PYTHIA}@step1"]))
    assert "not in the cache" in str(missing.fatal[0])
    assert "HF_HUB_OFFLINE" in str(missing.fatal[0])
    with pytest.raises(HubError, match=r"no weights of EleutherAI/pythia-160m are in the cache.*unset HF_HUB_OFFLINE"):
        discover(["suite:pythia-160m"])


def test_what_is_wrong_with_a_name_is_said_with_the_nearest(pythia):
    with pytest.raises(NoCheckpointError, match="did you mean 'pythia-70m'"):
        discover(["suite:pythia-70n"])
    with pytest.raises(NoCheckpointError, match=r"several models.*pythia-14m.*remedy: name one: suite:pythia-14m"):
        discover(["suite:Pythia"])
    with pytest.raises(HubError, match=r"pythia-75m cannot be listed.*no such repository.*did you mean 'pythia-70m'"):
        discover(["suite:pythia-75m"])
    with pytest.raises(HubError, match=r"org/absent cannot be listed.*no such repository.*hf auth login"):
        discover(["hub:org/absent@*"])
    with pytest.raises(NoCheckpointError, match="hub:ORG/NAME@"):
        discover(["suite:zzzz"])
    (wrong,) = verify_all(discover([f"hub:{PYTHIA}@step63"]))
    assert "no such revision" in str(wrong.fatal[0])
    assert "did you mean 'step64'" in str(wrong.fatal[0])


def test_a_gated_repository_is_called_that(pythia):
    pythia.gated.add(PYTHIA)
    (found,) = verify_all(discover([f"hub:{PYTHIA}@step8"]))
    assert "gated" in str(found.fatal[0])
    assert f"/{PYTHIA}" in str(found.fatal[0])
    assert "hf auth login" in str(found.fatal[0])


def test_without_a_network_there_is_one_line(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"cannot be listed \| got Connect.*the network and HF_ENDPOINT"):
        discover(["suite:pythia-70m"])


def test_names_of_models_find_their_repository():
    for suite in SUITES:
        for repository in suite.known:
            assert resolve(repository.rpartition("/")[2]) == (suite, repository)
            assert suite.organisation == repository.partition("/")[0]
    assert resolve("smollm2-135m")[1] == "HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints"
    assert resolve("olmo-2-1124-7b")[1] == "allenai/OLMo-2-1124-7B"
    assert resolve("DataDecide-falcon-1B")[1] == "allenai/DataDecide-falcon-1B"


def test_a_pattern_that_finds_nothing(pythia):
    with pytest.raises(NoCheckpointError, match="no revision with a step or D"):
        discover([f"hub:{PYTHIA}@iter*"])
