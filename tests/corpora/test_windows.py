"""Golden, oracle, property and contract tests of token windows."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ptq_eval.corpora import Text, make_windows, tokens
from ptq_eval.errors import MissingTokenizerError, OptionError, TextTooShortError, TokenRangeError


def as_text(content: str, name: str = "sample") -> Text:
    return Text(spec=name, digest=hashlib.sha256(content.encode()).hexdigest(), text=content, name=name)


def as_ids(*ids: int) -> Text:
    return Text(spec="ids.npy", digest="d", ids=np.array(ids, dtype=np.int64), name="ids")


@pytest.fixture(params=["tokenizer", "sentencepiece_like", "wordpiece"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


def test_golden_protocol():
    """The digest of a protocol is fixed: a change here needs a new rule version."""
    made = make_windows(as_ids(*range(10)), None, seq_len=3)
    assert made.ids.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert made.protocol == "ids-3-nonoverlap-v1-n3"
    assert made.digest == hashlib.sha256(b"nonoverlap-v1 (3, 3) " + np.arange(9, dtype="<i4").tobytes()).hexdigest()
    assert (made.total_windows, len(made), made.seq_len) == (3, 3, 3)
    assert made.n_bytes is None
    assert made.text_digest == "d"
    assert made.notes == ()


def test_oracle_published_protocol(any_tokenizer, text):
    """What the GPTQ authors' evaluation does: one call on the joined text, then a loop over slices."""
    ids = any_tokenizer(text)["input_ids"]
    made = make_windows(as_text(text), any_tokenizer, seq_len=64)
    assert made.total_windows == len(ids) // 64 == len(made)
    for i in range(len(ids) // 64):
        assert made.ids[i].tolist() == ids[i * 64 : (i + 1) * 64]
    assert made.ids.dtype == np.int32
    assert not made.ids.flags.writeable


@pytest.mark.parametrize(("count", "seq_len"), [(1, 2), (3, 64), (20, 32), (5, 17)])
def test_a_prefix_gives_the_windows_of_the_whole(any_tokenizer, text, count, seq_len):
    whole = make_windows(as_text(text), any_tokenizer, seq_len=seq_len)
    first = make_windows(as_text(text), any_tokenizer, seq_len=seq_len, count=count)
    assert first.total_windows is None, "the whole text was tokenized: this test shows nothing"
    assert np.array_equal(first.ids, whole.ids[:count])
    assert first.n_bytes is not None
    assert whole.n_bytes is not None
    assert np.array_equal(first.n_bytes, whole.n_bytes[:count])


# Runs without a break, longer than anything a tokenizer was trained on, and breaks of every kind between them.
stretches = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([" ", "=", "ab", "\n", "漢", "é", "🙂", "-"]), st.integers(1, 400)),
        st.tuples(st.text(max_size=20).filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)), st.just(1)),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=stretches, count=st.integers(1, 6))
def test_property_a_cut_changes_no_window(any_tokenizer, pieces, count):
    content = "".join(piece * times for piece, times in pieces) + " a dog" * 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "MARGIN", 256)
        patch.setattr(tokens, "CHARS_PER_TOKEN", 2)
        first = make_windows(as_text(content), any_tokenizer, seq_len=8, count=count)
    whole = make_windows(as_text(content), any_tokenizer, seq_len=8)
    assert np.array_equal(first.ids, whole.ids[:count])


def test_oracle_bytes_of_byte_level_tokens(tokenizer, text):
    """Each character of a byte-level token's name stands for one byte; a split character shifts under four."""
    ids = tokenizer(text)["input_ids"]
    lengths = np.array([len(token) for token in tokenizer.convert_ids_to_tokens(ids)])
    made = make_windows(as_text(text), tokenizer, seq_len=16)
    assert made.n_bytes is not None
    expected = lengths[: len(made) * 16].reshape(-1, 16)[:, 1:].sum(axis=1)
    assert np.abs(made.n_bytes - expected).max() <= 3
    assert (made.n_bytes == expected).mean() > 0.8
    assert np.any(lengths == 1), "no character was split: this test shows less than it claims"


def test_bytes_telescope(any_tokenizer, text):
    """Scored bytes of one window over everything = all bytes but those of its first token and of the tail."""
    encoding = any_tokenizer(text, return_offsets_mapping=True)
    count = len(encoding["input_ids"])
    if encoding["offset_mapping"][-1] == (0, 0):
        count -= 1
    made = make_windows(as_text(text), any_tokenizer, seq_len=count)
    first, last = encoding["offset_mapping"][0][1], encoding["offset_mapping"][count - 1][1]
    assert made.n_bytes is not None
    assert made.n_bytes.tolist() == [len(text[first:last].encode())]
    pairs = make_windows(as_text(text), any_tokenizer, seq_len=2)
    assert pairs.n_bytes is not None
    assert pairs.n_bytes.min() >= 0


def test_special_tokens_stand_once_at_the_start(sentencepiece_like, text):
    made = make_windows(as_text(text), sentencepiece_like, seq_len=32, count=10)
    assert made.ids[0, 0] == sentencepiece_like.bos_token_id
    assert (made.ids == sentencepiece_like.bos_token_id).sum() == 1


def test_crops_are_drawn_by_the_seed_from_the_whole_text(tokenizer, text):
    drawing = {"seq_len": 32, "count": 50, "selection": "crops"}
    draw = {seed: make_windows(as_text(text), tokenizer, seed=seed, **drawing) for seed in (3, 4)}
    again = make_windows(as_text(text), tokenizer, seed=3, **drawing)
    assert np.array_equal(draw[3].ids, again.ids)
    assert draw[3].digest == again.digest != draw[4].digest
    assert draw[3].protocol == "sample-32-crops-seed3-v1-n50"
    ids = np.array(tokenizer(text)["input_ids"])
    starts = np.random.default_rng(3).integers(0, len(ids) - 32 + 1, size=50)
    assert np.array_equal(draw[3].ids, np.stack([ids[s : s + 32] for s in starts]))
    assert starts.max() > len(ids) // 2
    assert draw[3].n_bytes is not None
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    i = int(np.argmax(starts))
    first, last = offsets[starts[i]][1], offsets[starts[i] + 31][1]
    assert draw[3].n_bytes[i] == len(text[first:last].encode())


def test_golden_protocol_of_a_spread_sample():
    """Two of each four of twenty windows, fixed by the seed: a change of the draw needs a new rule version."""
    made = make_windows(as_ids(*range(60)), None, seq_len=3, count=10, selection="spread", seed=0)
    assert made.protocol == "ids-3-spread-seed0-v1-n10"
    places = made.ids[:, 0] // 3
    assert (made.ids == 3 * places[:, None] + np.arange(3)).all()
    assert (places // 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert places.tolist() == [1, 3, 4, 7, 8, 11, 14, 15, 18, 19]
    assert made.digest == hashlib.sha256(b"spread-seed0-v1 (10, 3) " + made.ids.astype("<i4").tobytes()).hexdigest()
    assert (made.sample.selection, made.sample.population, made.total_windows) == ("spread", 20, 20)
    other = make_windows(as_ids(*range(60)), None, seq_len=3, count=10, selection="spread", seed=1)
    assert other.digest != made.digest


@pytest.mark.parametrize("count", [None, 20, 50])
def test_a_spread_sample_of_everything_is_everything(count):
    made = make_windows(as_ids(*range(60)), None, seq_len=3, count=count, selection="spread", seed=7)
    whole = make_windows(as_ids(*range(60)), None, seq_len=3)
    assert (made.digest, made.protocol, made.sample) == (whole.digest, whole.protocol, whole.sample)
    assert any("50 windows were requested" in note for note in made.notes) is (count == 50)


def test_a_spread_sample_is_of_the_windows_of_the_whole_text(any_tokenizer, text):
    whole = make_windows(as_text(text), any_tokenizer, seq_len=16)
    made = make_windows(as_text(text), any_tokenizer, seq_len=16, count=24, selection="spread")
    places = [int(np.flatnonzero((whole.ids == row).all(1))[0]) for row in made.ids]
    assert places == sorted(places)
    assert places[-1] > 0.8 * len(whole)
    assert made.n_bytes is not None
    assert whole.n_bytes is not None
    assert np.array_equal(made.n_bytes, whole.n_bytes[places])


def test_each_window_keeps_the_document_of_its_middle(tokenizer, text):
    cut = text.index("\n", len(text) // 3)
    marked = replace(as_text(text), documents=np.array([0, cut, cut + 50]))
    made = make_windows(marked, tokenizer, seq_len=16)
    ends = [end for _, end in tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
    middles = [ends[16 * i + 8] - 1 for i in range(len(made))]
    assert made.sample.documents == tuple((m >= cut) + (m >= cut + 50) for m in middles)
    assert set(made.sample.documents) >= {0, 2}
    assert make_windows(as_text(text), tokenizer, seq_len=16).sample.documents == ()


def test_documents_of_token_ids_are_between_separators():
    ids = [5, 5, 5, 9, 5, 5, 5, 5, 5, 9, 5, 5, 9]
    made = make_windows(as_ids(*ids), None, seq_len=2, separator=9)
    assert made.sample.documents == (0, 0, 1, 1, 1, 2)  # of tokens 1, 3, 5, …; the separator ends its document
    assert make_windows(as_ids(*ids), None, seq_len=2, separator=8).sample.documents == ()
    assert make_windows(as_ids(*ids), None, seq_len=2).sample.documents == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=stretches)
@example(pieces=[("=", 389), (" ", 126)])  # the last token of a piece is far from its end, where another may be added
def test_property_pieces_give_the_tokens_of_the_whole(any_tokenizer, pieces):
    content = "".join(piece * times for piece, times in pieces) + " a dog" * 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "MARGIN", 64)
        patch.setattr(tokens, "PIECE", 300)
        parts = tokens.tokenize(as_text(content), any_tokenizer, None)
    whole = tokens.tokenize(as_text(content), any_tokenizer, None)
    for name in ("ids", "ends", "byte_ends"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name))
    assert parts.complete


def test_a_long_text_goes_through_in_pieces(tokenizer, text, monkeypatch):
    content, seen, said = text * (1 + 40_000 // len(text)), [], []
    whole = tokens.tokenize(as_text(content), tokenizer, None)
    encode = tokens.encode
    monkeypatch.setattr(tokens, "PIECE", 20_000)
    monkeypatch.setattr(tokens, "encode", lambda tok, part, **more: seen.append(len(part)) or encode(tok, part, **more))
    parts = tokens.tokenize(as_text(content), tokenizer, None, lambda *what: said.append(what))
    assert max(seen) == 20_000
    assert len(seen) > 3
    assert np.array_equal(parts.ids, whole.ids)
    assert said[-1] == ("tokenizing", len(content), len(content))


def test_every_place_can_be_drawn():
    made = make_windows(as_ids(*range(6)), None, seq_len=4, count=200, selection="crops", seed=0)
    assert set(made.ids[:, 0].tolist()) == {0, 1, 2}


def test_crops_leave_numpys_global_generator_alone():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    make_windows(as_ids(*range(60)), None, seq_len=4, count=5, selection="crops", seed=1)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_fewer_windows_than_asked_for_are_noted():
    made = make_windows(as_ids(*range(10)), None, seq_len=3, count=7)
    assert len(made) == 3
    assert made.protocol.endswith("-n3")
    assert "7 windows were requested" in made.notes[0]
    assert "holds 3" in made.notes[0]


def test_the_digest_tells_what_the_windows_are():
    base = make_windows(as_ids(*range(12)), None, seq_len=3)
    assert make_windows(as_ids(*range(12)), None, seq_len=4).digest != base.digest
    assert make_windows(as_ids(*range(12)), None, seq_len=3, count=3).digest != base.digest
    assert make_windows(as_ids(*range(1, 13)), None, seq_len=3).digest != base.digest
    assert make_windows(as_ids(*range(14)), None, seq_len=3).digest == base.digest


def test_a_slow_tokenizer_gives_the_same_windows_without_bytes(tokenizer, text):
    class Slow:
        is_fast = False

        def __call__(self, content, **options):
            assert "return_offsets_mapping" not in options
            return tokenizer(content, **options)

    made = make_windows(as_text(text), Slow(), seq_len=32, count=9)
    assert made.n_bytes is None
    assert np.array_equal(made.ids, make_windows(as_text(text), tokenizer, seq_len=32, count=9).ids)


def test_no_warning_about_long_texts(tokenizer, text, capsys, monkeypatch):
    from transformers.utils import logging

    said = []
    monkeypatch.setattr(tokenizer, "model_max_length", 16)
    monkeypatch.setattr(logging.get_logger("transformers.tokenization_utils_base"), "warning", said.append)
    make_windows(as_text(text), tokenizer, seq_len=32)
    captured = capsys.readouterr()
    assert (said, captured.out, captured.err) == ([], "", "")
    tokenizer(text)
    assert said or capsys.readouterr().err, "transformers would not have warned: this test shows nothing"


@pytest.mark.parametrize("options", [{"seq_len": 1}, {"seq_len": 0}, {"seq_len": 4, "count": 0}])
def test_senseless_options(options):
    with pytest.raises(OptionError):
        make_windows(as_ids(1, 2, 3, 4), None, **options)


def test_text_shorter_than_one_window(tokenizer):
    with pytest.raises(TextTooShortError, match=r"got 3 tokens in ids\.npy \| allowed: at least 4"):
        make_windows(as_ids(1, 2, 3), None, seq_len=4)
    for content in ("", "a"):
        with pytest.raises(TextTooShortError):
            make_windows(as_text(content), tokenizer, seq_len=4, count=1)


def test_text_without_a_tokenizer():
    with pytest.raises(MissingTokenizerError):
        make_windows(as_text("some text"), None, seq_len=2)


@pytest.mark.parametrize(
    ("ids", "vocab", "named"),
    [((1, 2, 9, 10), 10, "id 10"), ((1, -1, 2, 2), 10, "id -1"), ((1, 2**31), None, "id 2147483648")],
)
def test_ids_outside_the_vocabulary(ids, vocab, named):
    with pytest.raises(TokenRangeError, match=named):
        make_windows(as_ids(*ids), None, seq_len=2, vocab_size=vocab)


def test_the_last_id_of_the_vocabulary_is_inside():
    assert make_windows(as_ids(0, 9), None, seq_len=2, vocab_size=10).ids.tolist() == [[0, 9]]


@pytest.mark.parametrize("selection", ["first", "spread", "crops"])
def test_with_bos_each_window_begins_with_it_and_the_same_tokens_are_scored(
    tokenizer, sentencepiece_like, text, selection
):
    drawing = {"seq_len": 32, "count": 9, "selection": selection, "seed": 3}
    for own in (tokenizer, sentencepiece_like):
        plain = make_windows(as_text(text), own, **drawing)
        begun = make_windows(as_text(text), own, bos=True, **drawing)
        assert (begun.ids[:, 0] == own.bos_token_id).all()
        assert np.array_equal(begun.ids[:, 1:], plain.ids[:, 1:])
        assert np.array_equal(begun.n_bytes, plain.n_bytes)
        assert begun.digest != plain.digest
        rule = "nonoverlap" if selection == "first" else f"{selection}-seed3"
        assert begun.protocol == f"sample-32-{rule}-bos-v1-n9"


def test_bos_before_token_ids(tokenizer):
    ids = as_ids(*range(1, 9))
    assert make_windows(ids, tokenizer, seq_len=4, bos=True).ids.tolist() == [[0, 2, 3, 4], [0, 6, 7, 8]]
    assert ids.ids is not None
    assert ids.ids.tolist() == list(range(1, 9)), "the text itself was changed"


def test_bos_without_such_a_token_is_refused(wordpiece, text):
    with pytest.raises(MissingTokenizerError, match="the tokenizer has none"):
        make_windows(as_text(text), wordpiece, seq_len=4, count=1, bos=True)
    with pytest.raises(MissingTokenizerError, match="--bos needs a tokenizer"):
        make_windows(as_ids(1, 2, 3, 4), None, seq_len=4, bos=True)


def test_a_tokenizer_that_adds_bos_is_noticed(tokenizer, sentencepiece_like, wordpiece, text):
    lacking = {
        own: make_windows(as_text(text), own, seq_len=4, count=1).lacks_bos
        for own in (tokenizer, sentencepiece_like, wordpiece)
    }
    assert lacking == {tokenizer: False, sentencepiece_like: True, wordpiece: False}
    assert not make_windows(as_text(text), sentencepiece_like, seq_len=4, count=1, bos=True).lacks_bos


def test_token_ids_without_the_bos_that_the_tokenizer_adds_are_noticed(sentencepiece_like):
    bos = sentencepiece_like.bos_token_id
    for first, lacks in ((bos, False), (bos + 1, True)):
        ids = as_ids(*[first, 5, 6, 7] * 4)
        assert make_windows(ids, sentencepiece_like, seq_len=4).lacks_bos == lacks
    assert not make_windows(ids, None, seq_len=4).lacks_bos
