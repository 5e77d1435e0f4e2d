"""Contract tests of token files: their type, stated or noticed, and ids that no tokenizer of the model makes."""

from __future__ import annotations

import numpy as np
import pytest

from ptq_eval.corpora import make_windows, read
from ptq_eval.corpora.tokenfile import RAW_TYPES, wider_type
from ptq_eval.errors import TextSourceError, TokenRangeError


def text_ids(vocab: int, count: int = 4000) -> np.ndarray:
    """Ids as frequent as those of a text are: the share of id i falls as 1/i."""
    return (np.exp(np.random.default_rng(0).random(count) * np.log(vocab)) - 1).astype(np.int64)


def cut(path, vocab):
    return make_windows(read(str(path)), None, seq_len=16, vocab_size=vocab)


@pytest.mark.parametrize("written", ["uint32", "int32", "int64"])
@pytest.mark.parametrize("as_type", list(RAW_TYPES))
def test_a_type_read_in_half_its_width_is_noticed(tmp_path, written, as_type):
    ids = text_ids(50_000)
    (tmp_path / "a.bin").write_bytes(ids.astype(RAW_TYPES[written]).tobytes())
    spec = f"{tmp_path / 'a.bin'}#{as_type}"
    widths = [np.dtype(RAW_TYPES[name]).itemsize for name in (written, as_type)]
    if widths[0] == widths[1]:
        assert np.array_equal(read(spec).ids, ids)
    elif widths[0] > widths[1]:
        with pytest.raises(TextSourceError, match=f"a.bin#{'int64' if written == 'int64' else 'uint32'}"):
            read(spec)
    else:
        with pytest.raises(TokenRangeError):
            make_windows(read(spec), None, seq_len=16, vocab_size=50_000)


def test_a_type_read_in_twice_its_width_is_named(tmp_path):
    (tmp_path / "a.bin").write_bytes(text_ids(50_000).astype("<u2").tobytes())
    with pytest.raises(TokenRangeError, match=r"a\.bin#uint16"):
        make_windows(read(f"{tmp_path / 'a.bin'}#uint32"), None, seq_len=16, vocab_size=50_000)


@pytest.mark.parametrize("vocab", [65_537, 128_256])
def test_a_type_that_cannot_hold_the_vocabulary_is_refused(tmp_path, vocab):
    (tmp_path / "a.bin").write_bytes(text_ids(50_000).astype("<u2").tobytes())
    with pytest.raises(TokenRangeError, match="uint16 cannot hold"):
        cut(tmp_path / "a.bin", vocab)
    np.save(tmp_path / "a.npy", text_ids(50_000).astype(np.uint16))
    with pytest.raises(TokenRangeError, match=r"uint16 cannot hold.*write the ids again as uint32"):
        cut(tmp_path / "a.npy", vocab)
    assert len(cut(tmp_path / "a.bin", 65_536)) == 250


@pytest.mark.parametrize("vocab", [1024, 50_257, 128_256])
def test_ids_of_a_smaller_vocabulary_are_implausible(tmp_path, vocab):
    np.save(tmp_path / "a.npy", text_ids(vocab // 10))
    with pytest.raises(TokenRangeError, match="implausibly low"):
        cut(tmp_path / "a.npy", vocab)
    np.save(tmp_path / "b.npy", text_ids(vocab))
    assert len(cut(tmp_path / "b.npy", vocab)) == 250
    np.save(tmp_path / "short.npy", text_ids(vocab // 10)[:999])
    assert len(cut(tmp_path / "short.npy", vocab)) == 62


@pytest.mark.parametrize(
    ("made_for", "vocab"), [(50_257, 128_256), (32_000, 151_936), (1000, 4096), (50_257, 256_000), (65_536, 81_920)]
)
def test_a_long_text_without_ids_of_the_upper_half_is_implausible(tmp_path, made_for, vocab):
    np.save(tmp_path / "a.npy", text_ids(made_for, 5000))
    with pytest.raises(TokenRangeError, match="implausibly low"):
        cut(tmp_path / "a.npy", vocab)
    np.save(tmp_path / "b.npy", text_ids(vocab, 5000))
    assert len(cut(tmp_path / "b.npy", vocab)) == 312
    np.save(tmp_path / "short.npy", text_ids(made_for, 900))
    assert len(cut(tmp_path / "short.npy", vocab)) == 56


def test_bytes_under_a_vocabulary_of_some_hundreds_are_plausible(tmp_path):
    np.save(tmp_path / "a.npy", np.frombuffer(b"ACGT, and some text in ASCII. " * 400, np.uint8).astype(np.uint16))
    assert len(cut(tmp_path / "a.npy", 512)) == 750


@pytest.mark.parametrize("vocab", [100_277, 128_256, 151_936])
def test_ids_that_were_stored_in_16_bits_on_their_way_are_implausible(tmp_path, vocab):
    np.save(tmp_path / "a.npy", (text_ids(vocab, 20_000) % 2**16).astype(np.uint32))
    with pytest.raises(TokenRangeError, match=r"stored in 16 bits.*write the ids as uint32"):
        cut(tmp_path / "a.npy", vocab)


@pytest.mark.parametrize("share", [0.2, 0.9, 1.0])
@pytest.mark.parametrize("count", [600, 5000, 3_000_000])
def test_padding_is_refused(tmp_path, share, count):
    ids, vocab = text_ids(50_257, count), 50_257
    documents = ids[: len(ids) // 500 * 500].reshape(-1, 500)
    documents[:, 500 - round(500 * share) :] = vocab - 1
    np.save(tmp_path / "a.npy", ids)
    with pytest.raises(TokenRangeError, match=r"holds padding.*of the ids are in runs"):
        cut(tmp_path / "a.npy", vocab)


@pytest.mark.parametrize(("low", "high"), [(0, 50_257), (0, 1024), (3000, 50_257), (0, 256), (0, 40_000)])
@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_uniformly_random_ids_are_refused_unless_any_is_asked_for(tmp_path, low, high, kind):
    ids = np.random.default_rng(high).integers(low, high, 5000).astype(np.uint16)
    np.save(tmp_path / "a.npy", ids)
    (tmp_path / "a.bin").write_bytes(ids.tobytes())
    spec, vocab = f"{tmp_path}/a.{kind}", max(high, 300) if high < 40_000 else 50_257
    with pytest.raises(TokenRangeError, match=r"uniformly random.*#any"):
        cut(spec, vocab)
    assert len(cut(f"{spec}#any", vocab)) == 312
    if kind == "bin":
        assert len(cut(f"{spec}#uint16,any", vocab)) == 312
        with pytest.raises(TokenRangeError, match=r"a\.bin#uint16,any"):
            cut(f"{spec}#uint16", vocab)


def test_any_ids_are_still_those_of_the_vocabulary(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(2000))
    with pytest.raises(TokenRangeError, match="outside the model's vocabulary"):
        cut(f"{tmp_path}/a.npy#any", 1000)


@pytest.mark.parametrize("shares", [[0.30, 0.20, 0.20, 0.30], [0.07, 0.06, 0.05] * 5 + [0.02] * 5])
def test_symbols_of_a_small_alphabet_are_text(tmp_path, shares):
    ids = np.random.default_rng(0).choice(len(shares), 50_000, p=shares)
    np.save(tmp_path / "a.npy", ids.astype(np.uint16))
    assert len(cut(tmp_path / "a.npy", len(shares))) == 3125


def test_rules_and_indents_are_no_padding(tmp_path):
    ids, rng = text_ids(50_257, 5000), np.random.default_rng(0)
    for start in np.cumsum(rng.integers(20, 60, 80)):
        ids[start : start + rng.integers(3, 16)] = 220
    ids[700:900] = 12
    np.save(tmp_path / "a.npy", ids)
    assert len(cut(tmp_path / "a.npy", 50_257)) == 312


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [64, 100, 128])
def test_documents_padded_to_a_length_are_refused(tmp_path, length, side):
    """Short padding, of every length down to none, as `padding="max_length"` gives it."""
    ids, rng = text_ids(50_257, 200 * length).reshape(-1, length), np.random.default_rng(1)
    for row, count in zip(ids, rng.integers(0, 12, len(ids))):
        row[slice(0, count) if side == "left" else slice(length - count, length)] = 50_256
    np.save(tmp_path / "a.npy", ids.ravel())
    with pytest.raises(TokenRangeError, match=rf"holds padding.*at multiples of {length}"):
        cut(tmp_path / "a.npy", 50_257)
    assert len(cut(f"{tmp_path}/a.npy#any", 50_257)) > 0


def test_the_same_short_padding_after_every_document_is_refused(tmp_path):
    ids = text_ids(50_257, 128 * 100).reshape(-1, 128)
    ids[:, 100:] = 1
    np.save(tmp_path / "a.npy", ids.ravel())
    with pytest.raises(TokenRangeError, match=r"holds padding.*22% of the ids"):
        cut(tmp_path / "a.npy", 50_257)


def test_an_id_outside_the_vocabulary_anywhere_in_the_file_is_refused(tmp_path):
    ids = text_ids(1000)
    ids[-1] = 1000
    np.save(tmp_path / "a.npy", ids)
    with pytest.raises(TokenRangeError, match="id 1000"):
        make_windows(read(str(tmp_path / "a.npy")), None, seq_len=16, count=2, vocab_size=1000)


def test_an_end_of_text_after_every_token_of_a_kind_is_no_width(tmp_path):
    ids = text_ids(5000).astype("<u2")
    ids[::3] = 0
    assert wider_type(ids) is None
    assert wider_type(np.zeros(4000, dtype="<u2")) is None


@pytest.mark.parametrize(("magic", "kind"), [(20240520, "<u2"), (20240801, "<u4")])
def test_the_header_of_llmc_is_skipped(tmp_path, magic, kind):
    ids = text_ids(50_000)
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, 1, len(ids)
    (tmp_path / "a.bin").write_bytes(header.tobytes() + ids.astype(kind).tobytes())
    assert np.array_equal(read(str(tmp_path / "a.bin")).ids, ids)


@pytest.mark.parametrize(("code", "kind"), [(4, "<i4"), (5, "<i8"), (8, "<u2")])
def test_the_type_of_a_megatron_index_is_used(tmp_path, code, kind):
    ids = text_ids(50_000)
    (tmp_path / "a.bin").write_bytes(ids.astype(kind).tobytes())
    (tmp_path / "a.idx").write_bytes(b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([code]) + bytes(40))
    assert np.array_equal(read(str(tmp_path / "a.bin")).ids, ids)


def test_other_content_under_the_name_of_a_token_file(tmp_path):
    (tmp_path / "text.bin").write_text("plain words, " * 40)
    with pytest.raises(TextSourceError, match="holds text"):
        read(str(tmp_path / "text.bin"))
    np.save(tmp_path / "a.npy", text_ids(300))
    (tmp_path / "a.npy").rename(tmp_path / "a.bin")
    assert np.array_equal(read(str(tmp_path / "a.bin")).ids, text_ids(300))
    with pytest.raises(TextSourceError, match="states its own type"):
        read(f"{tmp_path / 'a.bin'}#uint16")
    (tmp_path / "c#").mkdir()
    (tmp_path / "a.bin").rename(tmp_path / "c#" / "a.npy")
    assert np.array_equal(read(str(tmp_path / "c#" / "a.npy")).ids, text_ids(300))
