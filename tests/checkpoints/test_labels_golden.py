"""Golden: what names say, for the names that trainers and public suites give their checkpoints."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints.labels import Label, name_order, read, read_siblings


@pytest.mark.parametrize(
    ("name", "step", "unit", "stem"),
    [
        ("step_98", 98, "step", "step"),
        ("step98", 98, "step", "step"),
        ("step-00000098", 98, "step", "step"),
        ("step98-unsharded-hf", 98, "step", "step-unsharded-hf"),
        ("step69369-seed-default", 69_369, "step", "step-seed-default"),
        ("step69369-seed-small-aux-2", 69_369, "step", "step-seed-small-aux-2"),
        ("iter_0000098", 98, "step", "iter"),
        ("iter-9080000-ckpt", 9_080_000, "step", "iter-ckpt"),
        ("iteration 98", 98, "step", "iteration"),
        ("global_step98", 98, "step", "global_step"),
        ("checkpoint-98-hf", 98, "step", "checkpoint-hf"),
        ("checkpoint_0005000", 5000, "step", "checkpoint"),
        ("checkpoint-3-step-500", 500, "step", "checkpoint-step"),
        ("1000step", 1000, "step", "step"),
        ("98", 98, "step", ""),
        ("0000098", 98, "step", ""),
        ("ckpt-98", 98, "number", "ckpt"),
        ("ckpt_000", 0, "number", "ckpt"),
        ("ckpt_step_106000", 106_000, "step", "ckpt_step"),
        ("epoch_1", 1, "epoch", "epoch"),
        ("epoch=3-step=1000", 1000, "step", "step"),
        ("ep0-ba98", 98, "step", "ba"),
        ("ep1-ba980", 980, "step", "ba"),
        ("ep0-ba98-rank0", 98, "step", "ba-rank0"),
        ("ba980", 980, "step", "ba"),
        ("ep1_st98", 98, "step", "st"),
        ("foo_4_2B-step_98", 98, "step", "foo_4_2B-step"),
        ("checkpoint_1_1000", 1000, "step", "checkpoint-update"),
        ("checkpoint_2_2000", 2000, "step", "checkpoint-update"),
        ("step-00001000", 1000, "step", "step"),
        ("streaming_train_state_step1000", 1000, "step", "streaming_train_state_step"),
        ("megatron_gpt--val_loss=2.51-step=1000-consumed_samples=64000.0", 1000, "step", "megatron_gpt-step"),
        ("step_1000_loss_2.31", 1000, "step", "step"),
        ("batch1024_step10", 10, "step", "batch1024_step"),
        ("checkpoint-epoch-3", 3, "epoch", "checkpoint-epoch"),
        ("foo_1_step_98", 98, "step", "foo_1_step"),
        ("Qwen2.5-0.5B-step-100", 100, "step", "Qwen2.5-0.5B-step"),
        ("run-2026-11-28-step5", 5, "step", "run-2026-11-28-step"),
        ("step-480k", 480_000, "step", "step"),
        ("lc-4k-to-32k-step-4000", 4000, "step", "lc-4k-to-32k-step"),
        ("step-1,000", 1000, "step", "step"),
        ("step_1,234,567", 1_234_567, "step", "step"),
        ("step1e2", 100, "step", "step"),
        ("iter-2.5e3", 2500, "step", "iter"),
        ("1e5-steps", 100_000, "step", "steps"),
        ("1000it", 1000, "step", "it"),
        ("98-hf", 98, "step", "hf"),
        ("98_abcdef1", 98, "step", "abcdef1"),
        ("20240105_1230-98k_steps", 98_000, "step", "20240105_1230-steps"),
        ("step20240105", 20_240_105, "step", "step"),
        ("ba1000000", 1_000_000, "step", "ba"),
        ("epoch_1.0", 1, "epoch", "epoch"),
        ("step_98_20240105", 98, "step", "step-20240105"),
        ("step_98_1732000000", 98, "step", "step-1732000000"),
        ("checkpoint-500-0.9123", 500, "step", "checkpoint"),
        ("epoch=3-step=1000-val_ppl=12.3", 1000, "step", "step"),
    ],
)
def test_steps(name, step, unit, stem):
    assert read(name) == Label(stem, step, unit)


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "gpt2",
        "llama-7B",
        "seed1",
        "v1.1",
        "model_100",
        "10B",
        "2026-11-28",
        "a3f9b2c1",
        "latest",
        "20240105",
        "1732000000",
        "2024-01-05_12-30-00",
        "05-01-2024",
        "20240105T123000Z",
    ],
)
def test_no_word_says_what_the_number_counts(name):
    assert read(name) is None


def test_siblings_say_what_a_number_beside_an_unknown_word_counts():
    read = read_siblings(["model_1", "model_20", "foo-3", "98-hf", "980-hf", "seed1", "seed2"])
    assert {name: label.step for name, label in read.items()} == {
        "model_1": 1,
        "model_20": 20,
        "98-hf": 98,
        "980-hf": 980,
    }
    assert {name: label.tokens for name, label in read_siblings(["10B", "1.5T"]).items()} == {
        "10B": 10**10,
        "1.5T": 15 * 10**11,
    }


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["model_100", "model_200"], [100, 200]),
        (["weights.100", "weights.200"], [100, 200]),
        (["100-hf", "200-hf"], [100, 200]),
        (["foo-00100", "foo-01000"], [100, 1000]),
        (["foo-100", "foo-1000"], [None, None]),
        (["20x", "200x"], [None, None]),
        (["batch391", "batch1252"], [None, None]),
        (["batch-256", "batch-391"], [None, None]),
        ([f"batch{2**k}" for k in range(11)], [None] * 11),
        (["100Ksteps", "1Msteps"], [100_000, 1_000_000]),
        (["0.5Miters", "1Miters"], [500_000, 1_000_000]),
        (["consumed_samples_1000", "consumed_samples_2000"], [None, None]),
        (["step_9_consumed_samples_1000", "step_10_consumed_samples_2000"], [9, 10]),
        (["1e9", "2e9"], [None, None]),
        (["130M", "350M"], [None, None]),
        (["lr3e-4-step100", "lr3e-4-step200"], [100, 200]),
    ],
)
def test_which_numbers_without_a_word_for_steps_are_the_checkpoints_own(names, steps):
    labels = read_siblings(names)
    assert [labels[name].step for name in names] == steps
    assert len({label.stem for label in labels.values()}) == 1


@pytest.mark.parametrize(
    "names",
    ["llama-7b llama-13b", "model-4bit model-8bit", "model-4-bit model-8-bit", "int4 int8", "w4a16 w8a16", "q4 q8",
     "width128 width256", "batch256 batch768", "batch_128 batch_256 batch_512",
     "batch_size_8 batch_size_16", "seed3 seed4", "lr3e-4 lr3e-5",
     "rank8 rank16", "lora-r8 lora-r16", "12-layers 24-layers", "d512 d1024", "ctx2048 ctx4096", "4bit 8bit",
     "8x7b 8x22b", "gpu8 gpu16"],
)  # fmt: skip
def test_settings_and_sizes_are_no_labels(names):
    assert read_siblings(names.split()) == {}


def test_numbers_that_grow_together_make_one_run():
    labels = read_siblings(["e1_s98", "e1_s196", "e2_s294", "ep1_x5", "ep2_x9"])
    assert {name: (label.step, label.stem) for name, label in labels.items()} == {
        "e1_s98": (None, "e-s"), "e1_s196": (None, "e-s"), "e2_s294": (None, "e-s"),
        "ep1_x5": (None, "ep-x"), "ep2_x9": (None, "ep-x"),
    }  # fmt: skip
    doubtful = read_siblings(["0001000_tokens_2B", "0002000_tokens_4B"])
    assert {(label.step, label.tokens) for label in doubtful.values()} == {(None, None)}
    assert len({label.stem for label in doubtful.values()}) == 1
    assert read("1st") is None
    grid = read_siblings(["a1_b1", "a1_b2", "a2_b1", "a2_b2"])
    assert len({label.stem for label in grid.values()}) > 1


@pytest.mark.parametrize(
    "name",
    ["samples-1000", "1000_samples", "10pct", "pct10", "10%", "10percent", "10h", "day3", "3days", "epoch-0.5",
     "epoch_2.75", "step_1_000", "step-10-000", "step_1.000", "checkpoint-1-000", "5GB", "docs_1M",
     "100-200"],
)  # fmt: skip
def test_what_is_no_step_for_certain_is_none(name):
    label = read(name)
    assert label is not None
    assert (label.step, label.tokens) == (None, None)


@pytest.mark.parametrize(
    "names",
    [
        ["98_abcdef1", "980_1234abc"],
        ["step98-main", "step980"],
        ["step98", "step980-final"],
        ["checkpoint-98", "checkpoint-980-hf"],
        ["2024-01-05_step98", "2024-01-06_step980"],
        ["20240105_1230_step98", "20240105_1830_step980"],
        ["step98-20240105", "step196-20240105", "step980-20240106"],
        ["step_98_1732000000", "step_980_1732000500"],
        ["iter-98-loss2.51", "iter-980-loss2.31"],
        ["global_step98", "global-step980"],
    ],
)
def test_stamps_scores_and_words_that_do_not_matter_make_no_other_run(names):
    read = read_siblings(names)
    assert len({label.stem for label in read.values()}) == 1
    steps = [label.step or 0 for label in read.values()]
    assert steps == sorted(steps)
    assert all(steps)


@pytest.mark.parametrize(
    "names",
    [
        ["2024-01-05_step98", "2024-01-05_step980", "2024-01-06_step98", "2024-01-06_step980"],
        ["2024-01-05_step98", "2024-01-05_step980", "2024-01-06_step196"],
        ["step98-hf", "step980-hf", "step98", "step980"],
        ["abcdef1_step98", "abcdef1_step980", "1234abc_step1960"],
        ["small-step98", "large-step980"],
        ["step98-ema", "step980"],
    ],
)
def test_what_cannot_be_one_run_stays_apart(names):
    assert len({label.stem for label in read_siblings(names).values()}) > 1


@pytest.mark.parametrize(
    "names",
    [
        ["epoch1_step100", "epoch1_step200", "epoch2_step100"],  # counted within epochs
        ["epoch_0_step_300", "epoch_0_step_600", "epoch_1_step_250", "epoch_1_step_500"],
        ["epoch=0-step=500", "epoch=1-step=200"],
        ["ep0-ba300", "ep0-ba600", "ep1-ba250"],
        ["checkpoint_1_300", "checkpoint_1_600", "checkpoint_2_250"],
        ["step_500_epoch_1", "step_300_epoch_2"],
        ["1_100", "1_200", "2_300"],
        ["0-100", "0-200"],
        ["0.5", "1.0"],
        ["model_0.5", "model_1"],
        ["step-98", "step-1.000"],
    ],
)
def test_one_uncertain_step_makes_those_of_its_run_uncertain(names):
    labels = read_siblings(names)
    assert len(labels) == len(names)
    assert {(label.step, label.stem) for label in labels.values()} == {(None, next(iter(labels.values())).stem)}


@pytest.mark.parametrize(
    "names",
    ["epoch_0_step_300 epoch_0_step_600 epoch_1_step_650", "ep0-ba300 ep1-ba600", "epoch_2_step_5 epoch_10_step_9"],
)
def test_steps_that_grow_through_the_epochs_are_certain(names):
    labels = read_siblings(names.split())
    assert [labels[name].step for name in names.split()] == [
        int(re.split("step_|ba", name)[1]) for name in names.split()
    ]


def test_fractions_of_epochs_make_all_epochs_of_a_run_uncertain():
    labels = read_siblings(["epoch-0.5", "epoch-1", "epoch-1.5"]).values()
    assert {(label.step, label.unit, label.stem) for label in labels} == {(None, "epoch", "epoch")}


@pytest.mark.parametrize(
    "names",
    [
        ["5pct", "50pct", "100pct"],
        ["samples-9", "samples-10"],
        ["e-0.25", "e-0.5", "e-1.0"],
        ["9", "10", "2024-01-05"],
        ["c_900k", "c_1M", "c_20M", "c_1B"],
    ],
)
def test_names_sort_by_the_numbers_in_them(names):
    assert sorted(reversed(names), key=name_order) == names


@given(st.integers(0, 10**8), st.sampled_from(["step", "iter_", "update-", "global_step"]))
def test_property_one_number_in_every_notation(number, word):
    spelled = {f"{word}{number}", f"{word}{number:,}", f"{word}{number:010d}", f"{number}_steps", f"{number}steps"}
    assert {label and label.step for label in map(read, spelled)} == {number}
