"""Contract tests of every text source, and golden tests of what each reads."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from ptq_eval import corpora, plugins
from ptq_eval.corpora import TextSource, read
from ptq_eval.corpora.stdlib import PARTS, modules, part_of
from ptq_eval.errors import TextSourceError

DOCUMENTS = ["first — naïve", "second 漢字\nof two lines", "third"]
JOINED = "\n\n".join(DOCUMENTS)


@pytest.fixture
def files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": i, "text": text, "title": text.upper()} for i, text in enumerate(DOCUMENTS)]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    (tmp_path / "a.txt").write_bytes(JOINED.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(JOINED.encode()))
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress(JOINED.encode()))
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", np.array([5, 6, 7, 65535], dtype=np.int64))
    (tmp_path / "a.bin").write_bytes(np.array([5, 6, 7, 65535], dtype="<u2").tobytes())
    (tmp_path / "wide.bin").write_bytes(np.array([5, 6, 7, 65535], dtype="<u4").tobytes())
    return tmp_path


@pytest.mark.parametrize("name", ["stdlib", "hf", "textfile", "tokenfile"])
def test_contract_of_a_source(name):
    source = plugins.get("corpora", name)
    assert issubclass(source, TextSource)
    assert source.name == name
    assert source.help
    assert all(source.claims(example) for example in source.examples)
    assert source.examples
    others = [other for other in plugins.load_all("corpora").values() if other is not source]
    assert not any(other.claims(example) for other in others for example in source.examples)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.bz2", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_text_files_of_every_kind_hold_the_same_text(files, name):
    text = read(str(files / name))
    assert text.text == JOINED
    assert text.digest == hashlib.sha256(JOINED.encode()).hexdigest()
    assert (text.name, text.ids, text.spec) == ("a", None, str(files / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_field_can_be_named(files, name):
    assert read(f"{files / name}#title").text == "\n\n".join(text.upper() for text in DOCUMENTS)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("limit", [1, 7, 13, 14, 20, 10_000])
def test_max_chars_gives_the_start_of_the_text(files, name, limit):
    text = read(str(files / name), max_chars=limit)
    assert text.text == JOINED[:limit]
    assert text.digest == hashlib.sha256(JOINED[:limit].encode()).hexdigest()


def test_plain_text_is_taken_byte_for_byte_but_for_its_mark(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read(str(tmp_path / "b.txt")).text == "one\r\ntwo\n"
    assert read(str(tmp_path / "b.txt"), max_chars=4).text == "one\r"


@pytest.mark.parametrize("name", ["a.npy", "a.bin", "a.bin#uint16", "wide.bin#uint32", "wide.bin#int32"])
def test_token_files_of_every_kind_hold_the_same_ids(files, name):
    text = read(str(files / name))
    assert text.ids is not None
    assert text.ids.tolist() == [5, 6, 7, 65535]
    assert text.text is None
    assert text.digest == hashlib.sha256(np.array([5, 6, 7, 65535], dtype="<i8").tobytes()).hexdigest()
    limited = read(str(files / name), max_chars=2)
    assert limited.ids is not None
    assert limited.ids.tolist() == [5, 6]


def bad_files(root):
    np.save(root / "float.npy", np.zeros(3))
    np.save(root / "square.npy", np.zeros((3, 3), dtype=np.int64))
    np.save(root / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    (root / "junk.npy").write_bytes(b"not an array")
    (root / "odd.bin").write_bytes(b"abc")
    (root / "empty.bin").write_bytes(b"")
    (root / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (root / "torn.txt.gz").write_bytes(gzip.compress(b"hello" * 1000)[:30])
    (root / "torn.jsonl").write_text('{"text": "a"}\n{"text": "b')
    (root / "list.jsonl").write_text("[1, 2]\n")
    (root / "number.jsonl").write_text('{"text": 3, "title": "x"}\n')
    (root / "surrogate.jsonl").write_text('{"text": "a\\ud800b"}\n')
    (root / "junk.parquet").write_bytes(b"not a table")
    (root / "folder.txt").mkdir()
    os.mkfifo(root / "pipe.txt")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("missing.txt", "no such text file"),
        ("missing.npy", "no such text file"),
        ("folder.txt", "not a folder"),
        ("pipe.txt", "a pipe or a device, not a text file"),
        ("latin.txt", "byte 0xe9 at position 3"),
        ("torn.txt.gz", "cannot be read"),
        ("torn.jsonl", "line 2"),
        ("list.jsonl", "fields present: none"),
        ("number.jsonl", "fields present: text, title"),
        ("a.jsonl#body", "fields present: id, text, title"),
        ("surrogate.jsonl", "surrogate"),
        ("junk.parquet", "not a readable table"),
        ("a.parquet#body", "fields present: id, text, title"),
        ("a.parquet#id", "no text under 'id'"),
        ("float.npy", "float64"),
        ("square.npy", r"\(3, 3\)"),
        ("object.npy", "cannot be read"),
        ("junk.npy", "cannot be read"),
        ("odd.bin", "multiple of 2"),
        ("empty.bin", "the token file is empty .* remedy: tokenize"),
        ("a.bin#float32", "uint16, uint32, int32, int64"),
    ],
)
def test_bad_files_are_one_line(files, spec, said):
    bad_files(files)
    with pytest.raises(TextSourceError, match=said) as raised:
        read(str(files / spec))
    assert "\n" not in str(raised.value)


def test_unknown_specs_are_answered_with_the_nearest(tmp_path):
    for typed, meant in {"stdlb:evaluation": "stdlib:evaluation", "wikitxt2": "wikitext2"}.items():
        with pytest.raises(TextSourceError, match=f"did you mean '{meant}'"):
            read(typed)
    with pytest.raises(TextSourceError, match="allowed: hf:DATASET") as raised:
        read("zzzzzz")
    assert all(kind in str(raised.value) for kind in ("stdlib:", "FILE.txt", "FILE.npy"))
    with pytest.raises(TextSourceError, match="not a folder"):
        read(str(tmp_path))


def test_an_outside_source_is_reached_through_the_same_door(monkeypatch):
    class Shout(TextSource):
        name, help = "shout", "shout:WORD"

        @classmethod
        def claims(cls, spec):
            return spec.startswith("shout:")

        def read(self, spec, *, max_chars=None):
            return corpora.Text(spec=spec, digest="", text=spec[6:].upper()[:max_chars])

    monkeypatch.setattr(plugins, "load_all", lambda kind: {"shout": Shout} if kind == "corpora" else {})
    assert read("shout:hello", max_chars=4).text == "HELL"


def test_the_default_is_two_parts_of_the_embedded_text():
    evaluation, calibration = (read(spec, max_chars=2000) for spec in ("stdlib:evaluation", "stdlib:calibration"))
    assert (evaluation.name, calibration.name) == ("stdlib-evaluation", "stdlib-calibration")
    assert evaluation.digest != calibration.digest
    assert evaluation.text is not None
    assert len(evaluation.text) == 2000
    assert "standard library of Python" in evaluation.notes[0]


def test_modules_are_found_without_a_look_at_what_pip_installed(tmp_path, monkeypatch):
    """A folder of packages may hold a hundred thousand files."""
    kept = ("os.py", "json/__init__.py", "json/tool.py")
    others = ("test.py", "json/test/one.py", "site-packages/torch/nn/linear.py", "encodings/utf_8.py", "json/data.txt")
    for path in (*kept, *others):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    seen, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda top: (seen.append(found[0]) or found for found in walk(top)))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert sorted(name for name, _ in modules()) == ["json", "json.tool", "os"]
    assert [Path(folder).name for folder in seen] == [tmp_path.name, "json"]


def test_parts_of_the_embedded_text_are_disjoint_and_whole():
    names = [name for name, _ in modules()]
    assert len(set(names)) == len(names) > 300
    shares = {part: sum(part_of(name) == part for name in names) / len(names) for part in PARTS}
    assert sum(shares.values()) == pytest.approx(1)
    assert 0.7 < shares["train"] < 0.9
    assert min(shares.values()) > 0.05
    assert not any("test" in name.split(".") for name in names)
    golden = {"os": "train", "argparse": "train", "threading": "calibration", "json.decoder": "evaluation"}
    assert {name: part_of(name) for name in golden} == golden, "trained trajectories rest on this split"
    with pytest.raises(TextSourceError, match="train, calibration, evaluation"):
        read("stdlib:training")


def test_architecture_no_torch_and_no_datasets():
    """Reading a text and cutting token ids needs neither torch nor transformers nor datasets."""
    program = (
        "import sys; from ptq_eval import corpora, plugins; import ptq_eval.corpora.overlap; "
        "plugins.load_all('corpora'); corpora.read('stdlib:calibration', max_chars=10); "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
