"""Property and contract tests of the tokenizer, the batches and the learning-rate schedules."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.errors import TextTooShortError
from ptq_eval.pretrain import data
from ptq_eval.pretrain.data import END_OF_TEXT, Batches, encode, train_tokenizer
from ptq_eval.pretrain.schedule import branch_factor, factor, phase

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


@pytest.fixture(scope="session")
def tokenizer(text):
    return train_tokenizer(text, 320)


def test_the_vocabulary_has_the_size_asked_for(tokenizer):
    assert len(tokenizer) == 320
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == tokenizer.convert_tokens_to_ids(END_OF_TEXT) == 0


def test_training_a_tokenizer_twice_gives_the_same(tokenizer, text):
    assert train_tokenizer(text, 320).get_vocab() == tokenizer.get_vocab()


@pytest.fixture(scope="session")
def round_trip(tokenizer):
    return lambda content: tokenizer.decode(encode(tokenizer, content), clean_up_tokenization_spaces=False)


@settings(max_examples=150, deadline=None)
@given(content=unicode_text)
def test_property_every_string_round_trips(round_trip, content):
    assert round_trip(content) == content


@pytest.mark.slow
def test_long_texts_round_trip_over_the_pieces(tokenizer, text, round_trip):
    content = text * (2_100_000 // len(text) + 1)
    assert len(content) > 2_000_000
    ids = encode(tokenizer, content)
    assert (ids.ndim, ids.dtype) == (1, np.int32)
    assert round_trip(content) == content


def test_a_long_text_is_encoded_a_few_pieces_at_a_time(tokenizer, text, monkeypatch):
    whole, sizes = encode(tokenizer, text), []

    class Counting:
        def encode_batch_fast(self, pieces, **options):
            sizes.append(len(pieces))
            return tokenizer.backend_tokenizer.encode_batch_fast(pieces, **options)

    length = len(text) // 30
    monkeypatch.setattr(data, "PIECE", length)
    ids = encode(SimpleNamespace(backend_tokenizer=Counting()), text)
    assert max(sizes) == data.PIECES_AT_ONCE
    assert sum(sizes) == math.ceil(len(text) / length)
    assert tokenizer.decode(ids) == tokenizer.decode(whole)
    assert ids[: len(whole) // 40].tolist() == whole[: len(whole) // 40].tolist()


def test_runs_share_the_ids_of_a_text():
    ids = np.arange(1_000_000, dtype=np.int32)
    tracemalloc.start()
    try:
        batches = [Batches(ids, context=64, batch_size=8, seed=seed) for seed in range(4)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < ids.nbytes / 2
    assert batches[0].batch(0).dtype == torch.int64


def test_read_only_ids_are_batched_without_a_warning():
    ids = np.arange(64, dtype=np.int32)
    ids.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = Batches(ids, context=4, batch_size=8, seed=0).batch(0)
    batch += 1  # of its own, so nothing of the text changes
    assert ids.tolist() == list(range(64))


@given(count=st.integers(2, 40), batch_size=st.integers(1, 8), seed=st.integers(0, 2**31), epochs=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_property_each_epoch_holds_every_window_once(count, batch_size, seed, epochs):
    batch_size = min(batch_size, count)
    batches = Batches(np.arange(count * 4 + 3), context=4, batch_size=batch_size, seed=seed)
    steps = math.ceil(epochs * count / batch_size)
    seen = np.concatenate([batches.batch(step)[:, 0].numpy() for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == [4 * i for i in range(count)]
    assert batches.epoch_tokens == 4 * count


def test_a_batch_depends_on_its_step_and_the_seed_alone():
    def make(seed):
        return Batches(np.arange(400), context=4, batch_size=8, seed=seed)

    forward, backward = make(1), make(1)
    steps = range(40)  # over three epochs
    first = {step: forward.batch(step).tolist() for step in steps}
    second = {step: backward.batch(step).tolist() for step in reversed(steps)}
    assert first == second
    assert make(2).batch(0).tolist() != first[0]
    assert all(row == list(range(row[0], row[0] + 4)) for row in first[0])
    assert [first[step] for step in range(12)] != [first[step] for step in range(13, 25)], "epochs are shuffled alike"


def test_a_text_under_one_batch_is_refused():
    with pytest.raises(TextTooShortError, match="at least 32"):
        Batches(np.arange(31), context=4, batch_size=8, seed=0)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
def test_the_rate_rises_linearly_to_the_peak(schedule):
    rates = [factor(schedule, step, warmup=10, total=100) for step in range(11)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert factor(schedule, 0, warmup=0, total=100) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_the_trunk_stays_at_the_peak(schedule):
    assert {factor(schedule, step, warmup=10, total=100) for step in range(10, 101)} == {1.0}


def test_cosine_falls_to_a_tenth():
    rates = [factor("cosine", step, warmup=10, total=110) for step in range(10, 111)]
    assert rates[-1] == pytest.approx(0.1)
    assert rates[50] == pytest.approx(0.55)
    assert np.all(np.diff(rates) < 0)
    assert factor("cosine", 200, warmup=10, total=110) == pytest.approx(0.1)


def test_a_branch_falls_linearly_to_zero():
    rates = [branch_factor(step, start=80, end=100) for step in range(80, 101)]
    assert rates == pytest.approx(np.linspace(1, 0, 21))
    assert branch_factor(105, start=80, end=100) == 0


def test_phases():
    assert [phase(schedule, 5, warmup=10) for schedule in ("constant", "cosine", "wsd")] == ["warmup"] * 3
    assert [phase(schedule, 10, warmup=10) for schedule in ("constant", "cosine", "wsd")] == [
        "constant",
        "decay",
        "constant",
    ]
