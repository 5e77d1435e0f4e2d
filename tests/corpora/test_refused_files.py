"""Contract: files that look like texts and are none, and fields that occur twice, are refused with the reason."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ptq_eval.corpora import read
from ptq_eval.errors import TextSourceError


def test_a_field_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "other": 1, "other": 2}\n{"text": "b", "text": "c"}\n')
    with pytest.raises(TextSourceError, match=r"line 2 of .*the field 'text' occurs twice"):
        read(str(tmp_path / "a.jsonl"))
    names = ["text", "other", "text"]
    table = pa.Table.from_arrays([pa.array(["x"])] * 3, names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TextSourceError, match="several columns 'text'"):
        read(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b" \n" * 9000, "the text is blank"),
        ("a.txt", b"\0\0\0" + b"text " * 2000, "holds zero bytes.*tr -d"),
        ("a.txt", "\u4e2d\u6587 ".encode("gb18030") * 100, "iconv -f ENCODING"),
        ("a.jsonl", b"[" * 100_000, "not JSON"),
    ],
)
def test_what_looks_like_a_text_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextSourceError, match=says):
        read(str(tmp_path / name))


def test_a_text_on_the_web_is_not_fetched():
    with pytest.raises(TextSourceError, match=r"not fetched.*download it"):
        read("https://example.com/a.txt")
