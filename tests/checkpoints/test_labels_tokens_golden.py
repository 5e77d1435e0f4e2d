"""Golden: which tokens and stages names say, for the names that trainers and public suites give their checkpoints."""

import pytest

from ptq_eval.checkpoints.labels import read, read_siblings, stage_order


@pytest.mark.parametrize(
    ("name", "step", "tokens", "rounding", "stage"),
    [
        ("step1000-tokens4B", 1000, 4 * 10**9, 10**9, ""),
        ("step2627139-tokens15T", 2_627_139, 15 * 10**12, 10**12, ""),
        ("step-001000-2BT", 1000, 2 * 10**9, 10**9, ""),
        ("step-480k-token-1007B", 480_000, 1007 * 10**9, 10**9, ""),
        ("TinyLlama-1.1B-intermediate-step-480k-1T", 480_000, 10**12, 10**12, ""),
        ("TinyLlama-1.1B-step-50K-105b", 50_000, 105 * 10**9, 10**9, ""),
        ("240b_tokens", None, 240 * 10**9, 10**9, ""),
        ("tokens_seen_1B", None, 10**9, 10**9, ""),
        ("tokens_2.5B", None, 2_500_000_000, 10**8, ""),
        ("100Btokens", None, 10**11, 10**9, ""),
        ("ntok98000", None, 98_000, 1, ""),
        ("1e9tokens", None, 10**9, 10**9, ""),
        ("tokens-1,500,000", None, 1_500_000, 1, ""),
        ("samples-1000-tokens-2M", None, 2 * 10**6, 10**6, ""),
        ("98_000_000_tokens", None, 98_000_000, 1, ""),
        ("tokens_98_000_000", None, 98_000_000, 1, ""),
        ("tokens=500_000", None, 500_000, 1, ""),
        ("98 000 000 tokens", None, 98_000_000, 1, ""),
        ("step98-tokens_1_500_000", 98, 1_500_000, 1, ""),
        ("step_98_500_000_tokens", 98, 500_000, 1, ""),
        ("tokens_4_2B", None, 4_200_000_000, 10**8, ""),
        ("4_2B_tokens", None, 4_200_000_000, 10**8, ""),
        ("4_25Btok", None, 4_250_000_000, 10**7, ""),
        ("step_98_4_2B", 98, 4_200_000_000, 10**8, ""),
        ("step_400_2B", 400, 2_000_000_000, 10**9, ""),  # 5M in a step
        ("step-1_5T", None, 1_500_000_000_000, 10**11, ""),  # 5T in a step are no batch
        ("step-2_0T", None, 2_000_000_000_000, 10**11, ""),
        ("iter_1_5T-hf", None, 1_500_000_000_000, 10**11, ""),
        ("step_9000_1T", 9000, 10**12, 10**12, ""),
        ("step2000_8_4B_tokens", 2000, 8_400_000_000, 10**8, ""),
        ("step_98_2B", 98, 2 * 10**9, 10**9, ""),
        ("500M-tokens", None, 5 * 10**8, 10**6, ""),
        ("stage1-step1413814", 1_413_814, None, 0, "stage1"),
        ("stage2-ingredient3-step11931-tokens50B", 11_931, 50 * 10**9, 10**9, "stage2-ingredient3"),
        ("phase1_iter100", 100, None, 0, "phase1"),
        ("pretrain_iter_0001000", 1000, None, 0, "pretrain"),
        ("anneal_iter_0000010", 10, None, 0, "anneal"),
    ],
)
def test_tokens_and_stages(name, step, tokens, rounding, stage):
    label = read(name)
    assert label is not None
    assert (label.step, label.tokens, label.rounding, label.stage) == (step, tokens, rounding, stage)


@pytest.mark.parametrize(
    ("names", "tokens"),
    [
        (["foo-500B", "foo-1T"], [5 * 10**11, 10**12]),
        (["train_220B", "train_2640B"], [220 * 10**9, 2640 * 10**9]),
        (["neo_7b_intermediate_20.97B", "neo_7b_intermediate_41.94B"], [20_970_000_000, 41_940_000_000]),
        (["intermediate-500B", "intermediate-1T"], [5 * 10**11, 10**12]),
        (["checkpoint-1000B", "checkpoint-2T"], [10**12, 2 * 10**12]),
        (["chck_1M", "chck_10M"], [None, None]),  # BabyLM's are words
    ],
)
def test_billions_in_which_siblings_differ_are_tokens(names, tokens):
    labels = read_siblings(names)
    assert [labels[name].tokens for name in names] == tokens
    assert {(labels[name].step, labels[name].stem) for name in names} == {(None, labels[names[0]].stem)}


@pytest.mark.parametrize(
    "names",
    ["1B 7B", "1B 7B 13B", "0.5B 1B 2B", "model_1B model_7B", "4_2B 8_4B", "ckpt_4_2B ckpt_8_4B"],
)
def test_billions_that_may_be_sizes_or_two_numbers_are_asked_for(names):
    """One run, in order, without D: nothing says that 1B and 7B are tokens, nor whether 4_2B is 4.2B or a fourth."""
    labels = read_siblings(names.split())
    assert {(label.step, label.tokens, label.stem) for label in labels.values()} == {
        (None, None, labels[names.split()[0]].stem)
    }
    assert len(labels) == len(names.split())


@pytest.mark.parametrize("names", ["step_4_2B step_8_4B", "2B 4B 6B", "100B 200B", "20.97B 41.94B", "900B 1T"])
def test_billions_that_are_no_sizes_are_tokens(names):
    assert all(label.tokens for label in read_siblings(names.split()).values())


def test_a_total_that_all_names_share_is_not_the_checkpoints_own():
    shared = read_siblings(["a-step-98k-3T", "a-step-980k-3T"])
    assert [label.tokens for label in shared.values()] == [None, None]
    rounded = read_siblings(["step100-tokens1B", "step200-tokens1B"])
    assert [label.tokens for label in rounded.values()] == [10**9, 10**9]


def test_stages_sort_by_number_and_by_the_order_of_training():
    stages = ["anneal", "stage10", "pretrain", "stage2-ingredient10", "stage2-ingredient2", ""]
    assert sorted(stages, key=stage_order) == [
        "", "stage2-ingredient2", "stage2-ingredient10", "stage10", "pretrain", "anneal",
    ]  # fmt: skip


def test_the_size_of_a_model_is_no_count_of_tokens():
    alone = read("step100-7B")
    assert alone is not None
    assert not alone.said
    assert [label.tokens for label in read_siblings(["step100-7B", "step200-7B"]).values()] == [None, None]
    named = read_siblings(["step-50K-105b", "step-100K-210b"]).values()
    assert [(label.tokens, label.said) for label in named] == [(105 * 10**9, True), (210 * 10**9, True)]
