"""Contract and golden: where the documents of a text start, as its source knows or its marks say."""

import json

import numpy as np
import pytest

from ptq_eval.corpora import read
from ptq_eval.corpora.base import joined, marked_documents
from ptq_eval.corpora.stdlib import modules, part_of

ARTICLES = (
    " \n",
    " = Robert Boulter = \n \n Robert is an actor .\n = = Career = = \n He was in 2000 .\n",
    " = Du Fu = \n \n A poet .\n",
)
ENDED = ("one", "<|endoftext|>two\n\n\nstill two", "<|endoftext|>three")
BOOKS = ("BOOK ONE\nline\n\npart\n\n\n\n", "BOOK TWO\n\n\n", "BOOK THREE")
MARKED = {
    "end of text": ENDED,
    "WikiText": ARTICLES,
    "blank lines": BOOKS,
    "of Windows": tuple(book.replace("\n", "\r\n") for book in BOOKS),
}


@pytest.mark.parametrize("documents", MARKED.values(), ids=MARKED)
def test_marks_of_a_plain_text(documents, tmp_path):
    text = "".join(documents)
    starts = marked_documents(text)
    assert starts is not None
    assert tuple(text[a:b] for a, b in zip(starts, [*starts[1:], len(text)])) == documents
    (tmp_path / "text.txt").write_bytes(text.encode())
    found = read(str(tmp_path / "text.txt"))
    assert found.text == text
    assert np.array_equal(found.documents, starts)


@pytest.mark.parametrize("text", ["", "one line", "a\n\nb\n\nc", "x = y = z\n", "\n\n\n"])
def test_a_text_without_marks_has_no_documents(text):
    assert marked_documents(text) is None


def test_rows_are_documents(tmp_path):
    rows = ["one", "", "three\n\n\nstill three"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    found = read(str(path))
    assert found.documents is not None
    assert found.documents.tolist() == [0, 5, 7]
    assert found.text == "one\n\n\n\nthree\n\n\nstill three"


def test_joined_stops_where_it_is_long_enough():
    text, starts = joined(iter(["abc", "def", "ghi"]), "--", 6)
    assert (text, starts.tolist()) == ("abc--d", [0, 5])
    assert joined([], "--", None)[0] == ""


def test_modules_of_the_embedded_text_are_documents():
    found = read("stdlib:evaluation")
    names = [name for name, _ in modules() if part_of(name) == "evaluation"]
    assert found.documents is not None
    assert found.text is not None
    assert len(found.documents) == len(names)
    assert all(found.text[start - 2 : start] == "\n\n" for start in found.documents[1:])
