"""Golden and contract tests of data sets: recipes on a stand-in hub, reading on real local data sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ptq_eval.corpora import read
from ptq_eval.errors import TextSourceError

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"
ROWS = [{"text": text} for text in ("", " = Title = \n", " Body, naïve . \n", "")]


class Hub:
    """A stand-in for the hub: answers with rows and records what was asked for and how much of it was read."""

    def __init__(self, rows, commit=COMMIT):
        self.rows, self.hash = rows, commit
        self.asked, self.split, self.streamed, self.taken = None, None, None, 0

    def load_dataset_builder(self, path, config=None):
        self.asked = (path, config)
        return self

    def download_and_prepare(self):
        self.streamed = False

    def as_dataset(self, split):
        assert self.streamed is False, "not prepared"
        return self._read(split)

    def as_streaming_dataset(self, split):
        self.streamed = True
        return self._read(split)

    def _read(self, split):
        self.split = split
        for row in self.rows:
            self.taken += 1
            yield row


@pytest.fixture
def hub(monkeypatch):
    def install(rows, **options):
        made = Hub(rows, **options)
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset_builder=made.load_dataset_builder))
        return made

    return install


@pytest.mark.parametrize(
    ("spec", "split", "name"),
    [
        ("wikitext2", "test", "wikitext2"),
        ("wikitext2:test", "test", "wikitext2"),
        ("wikitext2:train", "train", "wikitext2-train"),
    ],
)
def test_golden_wikitext2(hub, spec, split, name):
    """The published tables' text: every row, empty ones too, joined by a blank line."""
    made = hub(ROWS)
    text = read(spec)
    assert text.text == "\n\n = Title = \n\n\n Body, naïve . \n\n\n"
    assert made.asked == ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert (made.split, made.streamed, text.name) == (split, False, name)
    assert COMMIT in text.notes[0]


def test_golden_c4(hub):
    """The first 1,100 documents of the validation split, joined by one space."""
    made = hub([{"text": f"d{i}", "url": "u", "timestamp": "t"} for i in range(2000)])
    text = read("c4")
    assert text.text == " ".join(f"d{i}" for i in range(1100))
    assert (made.asked, made.split, made.streamed, made.taken) == (("allenai/c4", "en"), "validation", True, 1100)
    assert text.name == "c4"
    hub(made.rows)
    assert read("c4:train").name == "c4-train"


@pytest.mark.parametrize("spec", ["c4", "hf:org/name:train"])
def test_max_chars_streams_and_stops_early(hub, spec):
    made = hub([{"text": "x" * 100} for _ in range(10**6)])
    text = read(spec, max_chars=1000)
    assert text.text is not None
    assert len(text.text) == 1000
    assert made.streamed
    assert made.taken <= 11


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("hf:name:train", ("name", None, "train")),
        ("hf:org/name:test", ("org/name", None, "test")),
        ("hf:org/name/config:test[:10%]", ("org/name", "config", "test[:10%]")),
    ],
)
def test_what_a_spec_names(hub, spec, asked):
    made = hub(ROWS, commit="0123456789abcdef")
    text = read(spec)
    assert (*made.asked, made.split) == asked
    assert text.notes[0].endswith("revision unknown")


@pytest.mark.parametrize("spec", ["hf:org/name", "hf::train", "hf:a/b/c/d:train", "hf:org/:train", "hf"])
def test_malformed_specs(hub, spec):
    made = hub(ROWS)
    with pytest.raises(TextSourceError, match="hf:DATASET:SPLIT"):
        read(spec)
    assert made.asked is None


def test_the_text_column(hub):
    hub([{"id": 1, "content": "a"}, {"id": 2, "content": None}, {"id": 3, "content": "b"}])
    assert read("hf:x/y:train").text == "a\n\nb"
    hub([{"title": "t", "body": "b", "n": 1}])
    with pytest.raises(TextSourceError, match="title, body, n"):
        read("hf:x/y:train")


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A real data set in the working folder, which `datasets` prefers to the hub."""
    import datasets

    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"doc {i}", "n": i}) + "\n" for i in range(4)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True, raising=False)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("limit", [None, 9])
def test_the_real_library_prepared_and_streamed(local, limit):
    text = read("hf:org/name:train", max_chars=limit)
    assert text.text == "doc 0\n\ndoc 1\n\ndoc 2\n\ndoc 3"[:limit]
    assert text.notes[0] == "org/name, split train, revision unknown"


@pytest.mark.parametrize(
    ("spec", "said"),
    [("hf:org/name:test", "unknown split .*train"), ("hf:org/name/odd:train", "configuration .*default")],
)
@pytest.mark.parametrize("limit", [None, 9])
def test_the_real_library_names_what_there_is(local, spec, said, limit):
    with pytest.raises(TextSourceError, match=said) as raised:
        read(spec, max_chars=limit)
    assert "\n" not in str(raised.value)


def test_offline_is_one_line_with_a_remedy(tmp_path):
    program = (
        "from ptq_eval.corpora import read\nfrom ptq_eval.errors import TextSourceError\n"
        "for spec in ('wikitext2', 'c4', 'hf:no-such/thing:train'):\n"
        "    try:\n        read(spec)\n"
        "    except TextSourceError as error:\n        print(error)\n"
    )
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **offline}
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("stdlib:evaluation" in line and "ffline" in line for line in lines)


@pytest.mark.parametrize(
    ("error", "said"),
    [(FileNotFoundError("'a/b' doesn't exist"), "no such data set"), (ConnectionError("lost\nline"), "network")],
)
def test_an_unknown_data_set_is_told_from_a_lost_network(hub, error, said):
    def rows():
        yield {"text": "arrived"}
        raise error

    hub(rows())
    with pytest.raises(TextSourceError, match=said) as raised:
        read("hf:a/b:train")
    assert "\n" not in str(raised.value)
