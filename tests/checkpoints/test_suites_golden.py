"""Golden: every public suite reproduces a label or a total that its authors published."""

import pytest

from ptq_eval.checkpoints import discover
from ptq_eval.checkpoints.base import read_label
from ptq_eval.checkpoints.labels import read
from ptq_eval.checkpoints.named import resolve
from ptq_eval.checkpoints.suite_rules import Status, ramp, tokens_after
from ptq_eval.checkpoints.suites import SUITES, find, from_path
from ptq_eval.errors import NoCheckpointError
from tests.checkpoints.support import touch_checkpoint


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_the_rule_reproduces_what_is_published(suite):
    check = suite.check
    assert find(check.model, check.label) is suite
    position = read_label(check.model, check.label)
    assert position is not None
    if suite.status is Status.ASK or suite.path:
        assert position.tokens is None
        assert suite.name in position.note
        assert "--tokens-per-step" in position.note
        return
    assert position.source == ("label" if suite.status is Status.LABEL else "derived")
    assert position.tokens == pytest.approx(check.tokens, rel=check.tolerance, abs=0)
    assert suite.status.value in position.note


def test_labels_are_rounded_up_down_or_to_the_nearest_so_that_their_error_is_up_to_one_unit():
    labels = [(suite, label) for suite in SUITES if (label := read(suite.check.label)) and label.tokens]
    ruled = [(suite.tokens_in_stage(label), label) for suite, label in labels]
    errors = [(exact - label.tokens) / label.rounding for exact, label in ruled if exact is not None]
    assert len(errors) >= 5
    assert all(abs(error) < 1 for error in errors)
    assert min(errors) < -0.5
    assert max(errors) > 0


def test_there_are_many_suites_of_every_status_and_twenty_with_a_checked_rule():
    """Held against a published D by `test_the_rule_reproduces_what_is_published`; sizes of one suite count once."""
    of_one = {"DataDecide", "Pythia,", "SmolLM2"}
    checked = [suite for suite in SUITES if suite.check.tokens is not None]
    names = {first if (first := suite.name.split()[0]) in of_one else suite.name for suite in checked}
    assert len(names) >= 20
    assert all((suite.status is Status.ASK) == (suite.check.tokens is None) for suite in SUITES)
    assert {suite.status for suite in SUITES} == set(Status)


@pytest.mark.parametrize(
    ("model", "label", "tokens"),
    [
        ("EleutherAI/pythia-160m-data-seed2", "step1000", 2_097_152_000),
        ("EleutherAI/pythia-160m-weight-seed3", "step512", 512 * 2_097_152),
        ("EleutherAI/pythia-14m-seed9", "step1", 2_097_152),
        ("allenai/Olmo-3-1025-7B", "stage2-step47684", 5_929_965_715_456 + 47_684 * 2_097_152),
        ("allenai/Olmo-3-1025-7B", "stage3-step11921", 6_029_966_311_424 + 11_921 * 4_194_304),
        ("swiss-ai/Apertus-70B-2509", "step50000-tokens210B", 50_000 * 4_194_304),
        ("allenai/DataDecide-dclm-baseline-1B", "step100-seed-small-aux-2", 100 * 704 * 2048),
        ("any folder", "TinyLlama-1.1B-intermediate-step-955k-token-2T", 955_000 * 2_097_152),
        ("HuggingFaceTB/SmolLM3-3B-checkpoints", "lc-4k-to-32k-step-4000", None),
        ("allenai/Olmo-3-1125-32B", "stage2-step1000", None),
        ("infly/OpenCoder-1.5B-Base", "anneal_iter_0001000", None),
        ("tinyllama-mine", "step-500", None),
        ("runs", "pythia-160m-step1000", 1000 * 2**21),
        ("runs", "pythia-160m_step1000-hf", 1000 * 2**21),
        ("pythia-160m-deduped", "step1000-hf", 1000 * 2**21),
        ("pythia-160m-hf", "step1000", 1000 * 2**21),
        ("EleutherAI_pythia-160m", "step1000", 1000 * 2**21),
        ("runs", "EleutherAI-pythia-160m@step1000", 1000 * 2**21),
        ("mine_pythia-160m", "step1000", None),
        ("open-sci-ref-v0.01-1.7b", "iter_0001000", None),
        ("Olmo-3-1025-7B", "stage1_step1000", 1000 * 2**22),
        ("runs", "Olmo-3-1025-7B-stage2-step1000", 5_929_965_715_456 + 1000 * 2**21),
        ("runs", "DataDecide-c4-1B-step5000-seed-default", 5000 * 704 * 2048),
        ("runs", "SmolLM2-135M_step_240000", 240_000 * 2**20),
        ("bloom-intermediate", "global-step95000", 365_367_885_824),
        ("runs", "pythia-160m-mine-step1000", None),
        ("pythia-160m-mine", "step1000", None),
        ("pythia-160m", "step1000-mine", None),
        ("runs", "my-pythia-160m-step1000", None),
    ],
)
def test_names_of_the_suites(model, label, tokens):
    position = read_label(model, label)
    assert position is not None
    assert position.tokens == tokens


def test_folders_with_the_names_of_model_and_checkpoint(tmp_path):
    for name in ("stage1-step1000", "stage2-step1000", "stage2-step2000"):
        touch_checkpoint(tmp_path / "runs" / f"Olmo-3-1025-7B-{name}")
    before = 5_929_965_715_456
    assert [(c.run, c.tokens) for c in discover([tmp_path / "runs"])] == [
        ("runs", 1000 * 2**22),
        ("runs", before + 1000 * 2**21),
        ("runs", before + 2000 * 2**21),
    ]


def test_a_batch_that_changes_is_summed_over_its_steps():
    batches = ((0, 10), (100, 20), (150, 40))
    slow = [sum(max(per for start, per in batches if start <= step) for step in range(last)) for last in range(200)]
    assert [tokens_after(last, batches) for last in range(200)] == slow


def test_a_batch_that_grows_covers_the_samples_it_is_said_to():
    batches = ramp(192, 16, 2048, 9_765_625, 1)
    assert (batches[0], batches[-1][1]) == ((0, 192), 2048)
    assert tokens_after(batches[-1][0], batches) == pytest.approx(9_765_625, abs=2 * 2048)


def test_the_batch_that_a_path_states():
    stated = from_path("runs/x_global_bs-1008_context-4096_schedule-WSD_lr-4e-3_warmup-25000/hf/iter_0072661")
    assert stated is not None
    assert (stated[0].name, stated[1]) == ("open-sci-ref 0.01", 1008 * 4096)
    assert from_path("EleutherAI/pythia-70m") is None


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_what_is_listed_of_a_suite_is_of_it(suite):
    assert suite.check.model in suite.known
    for repository in suite.known:
        assert suite.has_model(repository.rpartition("/")[2])
    for label in filter(None, suite.span):
        assert find(suite.known[0], label) is suite
        position = read_label(suite.known[0], label)
        assert position is not None
        assert position.tokens is not None


def test_a_revision_of_a_suites_model_is_named_as_the_hub_has_it():
    with pytest.raises(NoCheckpointError, match=r"write hub:EleutherAI/pythia-70m@step98$"):
        resolve("pythia-70m@step98")
