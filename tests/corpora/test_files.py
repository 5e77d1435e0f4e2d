"""Contract and property tests of text files: compression, encodings, fields, and names that hold `#`."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.corpora import read
from ptq_eval.corpora.documents import find
from ptq_eval.corpora.files import split_spec
from ptq_eval.errors import TextSourceError

DOCUMENTS = ["first — naïve", "second 漢字\nof two lines", "third"]
JOINED = "\n\n".join(DOCUMENTS)
LINES = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(DOCUMENTS))


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


def zipped(content: bytes, *more: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/part.data", content)
        archive.writestr("__MACOSX/folder/._part.data", b"\0")
        for name in more:
            archive.writestr(name, b"more")
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        item = tarfile.TarInfo("part.txt")
        item.size = len(content)
        archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00size"
PACKED = {
    "": bytes,
    ".gz": gzip.compress,
    ".gzip": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zip": zipped,
    ".lz4": lambda content: pa.compress(content, codec="lz4", asbytes=True),
    ".zst": zstd,
    ".zstd": lambda content: SKIPPABLE + zstd(content[:9]) + zstd(content[9:]),  # as pzstd writes it
}


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def arrow(table: pa.Table, *, stream: bool) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.ipc", "a", "a.txt", "a.arrow.gz"])
@pytest.mark.parametrize("stream", [True, False])
def test_tables_of_arrow(tmp_path, name, stream):
    table = pa.table({"id": [1, 2, 3], "text": DOCUMENTS, "meta": [{"body": text.upper()} for text in DOCUMENTS]})
    content = arrow(table, stream=stream)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(str(tmp_path / name)).text == JOINED
    assert read(f"{tmp_path / name}#meta.body").text == JOINED.upper()
    with pytest.raises(TextSourceError, match="fields present: id, text, meta"):
        read(f"{tmp_path / name}#body")
    (tmp_path / name).write_bytes(content[:-40] if stream else content[: len(content) // 2])
    with pytest.raises(TextSourceError, match=r"not a readable table|cannot be read"):
        read(str(tmp_path / name))


def test_a_table_that_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(str(tmp_path))
    assert read(str(next(tmp_path.glob("*.arrow")))).text == JOINED


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kind", [".txt", ".raw", ".md", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_kind_in_every_compression(tmp_path, kind, ending):
    content = {".txt": JOINED, ".raw": JOINED, ".md": JOINED}.get(kind, LINES).encode()
    if kind == ".parquet":
        content = parquet(pa.table({"text": DOCUMENTS}))
    path = tmp_path / f"part.00001{kind}{ending}"
    path.write_bytes(PACKED[ending](content))
    assert read(str(path)).text == JOINED
    assert read(str(path), max_chars=20).text == JOINED[:20]


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", ["enwik8", "a.txt", "a.txt.gz", "README"])
def test_the_content_tells_the_compression(tmp_path, name, ending):
    (tmp_path / name).write_bytes(PACKED[ending](JOINED.encode()))
    assert read(str(tmp_path / name)).text == JOINED


def test_a_file_without_an_ending_is_recognised_by_its_content(tmp_path):
    for name, content in (("table", parquet(pa.table({"text": DOCUMENTS}))), ("lines", LINES.encode())):
        (tmp_path / name).write_bytes(content)
        assert read(str(tmp_path / name)).text == JOINED
    assert read(f"{tmp_path / 'lines'}#text").text == JOINED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", JOINED), ("a.jsonl", LINES), ("b.jsonl", LINES.replace("\n", "\r\n"))]
)
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding, name, content):
    (tmp_path / name).write_bytes(content.encode(encoding))
    text = read(str(tmp_path / name))
    assert text.text == JOINED
    assert text.digest == read_utf8(tmp_path, name, content).digest
    assert read(str(tmp_path / name), max_chars=17).text == JOINED[:17]


def read_utf8(folder, name, content):
    (folder / "utf8").mkdir()
    (folder / "utf8" / name).write_bytes(content.encode())
    return read(str(folder / "utf8" / name))


STRINGS = pa.array(DOCUMENTS)


@pytest.mark.parametrize(
    "column",
    [
        STRINGS,
        STRINGS.cast(pa.large_string()),
        STRINGS.cast(pa.string_view()),
        STRINGS.cast(pa.binary()),
        STRINGS.dictionary_encode(),
        STRINGS.cast(pa.large_string()).dictionary_encode(),
        pa.array([*DOCUMENTS[:1], None, *DOCUMENTS[1:]]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_every_type_of_text_in_parquet(tmp_path, column):
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    text = read(str(tmp_path / "a.parquet"))
    assert text.text == JOINED
    assert (text.notes == ()) == (column.null_count == 0)


ROWS = [{"meta": {"body": text, "a.b": text.upper()}, "turns": [{"said": text}, {"said": None}]} for text in DOCUMENTS]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "pretty.json", "a.parquet"])
def test_nested_fields(tmp_path, name):
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / name)
    elif name == "a.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        (tmp_path / name).write_text("\n" + json.dumps(ROWS, indent=2 if name == "pretty.json" else None))
    assert read(f"{tmp_path / name}#meta.body").text == JOINED
    assert read(f"{tmp_path / name}#meta.a.b").text == JOINED.upper()
    assert read(f"{tmp_path / name}#turns.said").text == JOINED
    with pytest.raises(
        TextSourceError,
        match=r"fields present: meta, meta\.body, meta\.a\.b, turns, turns\.said"
        if name != "a.parquet"
        else "fields present: meta, turns",
    ):
        read(str(tmp_path / name))


def test_one_object_and_bare_strings(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps({"version": 1, "data": [{"text": text} for text in DOCUMENTS]}, indent=1)
    )
    assert read(f"{tmp_path / 'a.json'}#data.text").text == JOINED
    (tmp_path / "b.json").write_text(json.dumps(DOCUMENTS))
    assert read(str(tmp_path / "b.json")).text == JOINED


def test_rows_without_text_are_skipped_and_counted(tmp_path):
    rows = [{"url": "x"}, {"text": DOCUMENTS[0]}, {"text": None}, *({"text": text} for text in DOCUMENTS[1:])]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = read(str(tmp_path / "a.jsonl"))
    assert text.text == JOINED
    assert text.notes == ("2 of the 5 rows read from a.jsonl have no 'text' and are skipped",)


def test_a_missing_field_is_not_searched_for_in_all_of_a_large_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 1000 + "torn")
    with pytest.raises(TextSourceError, match="fields present: content"):
        read(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("rows", "remedy"),
    [
        ([{"text": 3, "title": "x", "body": {"en": "y"}}], "name a field that holds strings: .*#title or .*#body.en"),
        ([{"text": None, "title": "x"}] * 2, "name a field that holds strings: .*#title"),
        ([{"text": ["a"], "title": 4}], "write one object a row"),
        ([{"text": {"en": "a"}}], "name a field that holds strings: .*#text.en"),
        ([{"text": "a"}, {"text": None}, {"text": "b"}, {"text": 3}], "correct or remove this row: the 2 before it"),
        ([3, 4], "write one object a row"),
        ([None], "write one object a row"),
        ([[["a"]]], "write one object a row"),
        ([[{"title": "a"}]], "name a field that holds strings: .*#title"),
    ],
)
def test_the_remedy_names_fields_that_hold_strings_or_the_wrong_row(tmp_path, rows, remedy):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(TextSourceError, match=f"remedy: {remedy}"):
        read(str(tmp_path / "a.jsonl"))


def test_the_remedy_names_columns_that_hold_strings(tmp_path):
    pq.write_table(
        pa.table({"id": [1], "title": ["x"], "kind": pa.array(["y"]).dictionary_encode()}), tmp_path / "a.pq"
    )
    for spec in ("a.pq", "a.pq#id"):
        with pytest.raises(TextSourceError, match=r"holds strings: .*#title or .*#kind$"):
            read(str(tmp_path / spec))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "caf\xe9".encode("latin-1"), "not UTF-8 text"),
        ("a.txt", "plain words".encode("utf-16-le"), "zero bytes"),
        ("a.jsonl", '{"text": "caf\xe9"}'.encode("latin-1"), "not UTF-8 text"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("a.txt.zst", zstd(JOINED.encode() * 99)[:-9], "cannot be read"),
        ("a.txt.xz", lzma.compress(JOINED.encode() * 99)[:-9], "cannot be read"),
        ("a.txt.xz", lzma.compress(JOINED.encode())[:12] + b"junk" * 9, "cannot be read"),
        ("a.json", b'[{"text": "a"},\n', "not JSON"),
        ("a.jsonl", b'{"text": ["a", "b"]}', "line 1 of .*a.jsonl holds no text under 'text'"),
        ("a.jsonl", b'{"text": "a"}\n' * 21 + b'{"text": 3}', "^line 22 of .*a.jsonl holds no text under 'text'"),
        ("a.jsonl", b'{"text": {"en": "a"}}', "fields present: text, text.en"),
        ("a.jsonl", b'{"text": null}\n{"text": null}', "no text under 'text'"),
        ("a.csv", b"text\nhello\n", "save the column"),
        ("a.zip", b"PK\x03\x04\xff\xff", "not a zip file"),
        ("a.zip", zipped(b"a", "b.txt", "c.txt"), "zip archive of 3 files.*part.data, b.txt, c.txt.*unpack"),
        ("a.docx", zipped(b"a", "[Content_Types].xml"), "zip archive of 2 files"),
        ("a.tar", tarred(b"text"), "a tar archive.*unpack it"),
        ("a.txt.gz", gzip.compress(tarred(b"text")), "a tar archive"),
        ("a.txt.gz", gzip.compress(gzip.compress(b"text")), "compressed twice"),
        ("a.jsonl.gz", gzip.compress(zstd(b"text")), "compressed twice"),
        ("a.txt", b"%PDF-1.7\n%\xe2\xe3\n", "a PDF document.*extract its text"),
        ("a.jsonl", b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
        ("a.txt.lz4", b"\x04\x22\x4d\x18" + JOINED.encode(), "cannot be read"),
        ("a.txt.lz4", b"\x02\x21\x4c\x18" + JOINED.encode(), "lz4's legacy format.*decompress"),
        ("a.orc", b"ORC\x11\x00\x00\x0a", "a table in ORC.*Parquet"),
        ("a.arrow", b"ARROW1\0\0" + b"\0" * 99, "not a readable table in Parquet or Arrow"),
        ("a.txt", b"\x93NUMPY\x01\0v\0", "NumPy array.*save token ids alone as .npy"),
        ("a.txt", bytes(range(256)) * 9, "binary, not text"),
        ("a.txt", b"words " * 99 + bytes(range(1, 32)) * 9 + b"\xff", "binary, not text"),
        ("a.txt", "plain words".encode("utf-16-le"), "UTF-16 without a byte-order mark.*iconv -f UTF-16LE"),
        ("a.txt", "plain words".encode("utf-16-be"), "UTF-16 without a byte-order mark.*iconv -f UTF-16BE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",  # bytes of gzip hold the time
)
def test_what_is_no_text_is_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextSourceError, match=said) as raised:
        read(str(tmp_path / name))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("start", ["ORCHARD", "PARENTS", "LZIP is", "Rar!", "7z"])
def test_a_text_that_begins_like_a_binary_format_is_a_text(tmp_path, start):
    (tmp_path / "a.txt").write_text(start + JOINED)
    assert read(str(tmp_path / "a.txt")).text == start + JOINED


def test_a_field_of_plain_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(TextSourceError, match="plain text has no fields"):
        read(f"{tmp_path / 'a.txt'}#text")


def test_a_name_may_hold_the_mark_of_a_field(tmp_path):
    folder = tmp_path / "c#" / "d.jsonl#e"
    folder.mkdir(parents=True)
    rows = [{"text": text, "x#y": text.upper()} for text in DOCUMENTS]
    for name in ("a.jsonl", "a#1.jsonl", "a.jsonl#text"):
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    (folder / "a.jsonl#text").write_text('{"text": "of the longer name"}')
    assert read(str(folder / "a#1.jsonl")).text == JOINED
    assert read(f"{folder / 'a#1.jsonl'}#x#y").text == JOINED.upper()
    assert read(f"{folder / 'a.jsonl'}#text").text == "of the longer name"
    assert read(f"{folder / 'a.jsonl'}#x#y").text == JOINED.upper()
    (folder / "b.txt").write_text(JOINED)
    assert read(str(folder / "b.txt")).text == JOINED
    with pytest.raises(TextSourceError, match=r"no such text file \| got .*c#/missing.jsonl \|"):
        read(f"{tmp_path / 'c#' / 'missing.jsonl'}#text")


@given(st.text("ab#./", max_size=20))
def test_property_a_spec_is_split_at_a_mark_or_not_at_all(spec):
    file, field = split_spec(spec, lambda name: name.endswith("b"))
    assert spec == file + "#" + field if field or spec != file else spec == file
    longer = [spec[:i] for i, c in enumerate(spec + "#") if c == "#" and i > len(file)]
    assert file == spec or not any(name.endswith("b") for name in longer)


@given(st.dictionaries(st.text("ab.", min_size=1, max_size=4), st.text(max_size=3), min_size=1))
def test_property_a_field_with_dots_in_its_name_is_found(row):
    for name, value in row.items():
        assert find(row, name) == [value]
        assert find({"outer": [row, {}, row]}, f"outer.{name}") == [value, value]
