"""Texts from data sets on the Hugging Face hub, read with the `datasets` library.

Two short names refer to the texts of the published tables of post-training quantization, joined as the GPTQ authors
join them (Frantar et al. 2023, arXiv 2210.17323, and their code):

wikitext2[:split]   Salesforce/wikitext, wikitext-2-raw-v1, every row (empty ones too) joined by a
                    blank line.
c4[:split]          allenai/c4, English, the first 1,100 documents of a split joined by one space, which is
                    the text of their newer protocol; with `max_chars`, as many documents as that requires.

Any other data set is `hf:[organisation/]name[/configuration]:split`; two parts are organisation and name, never name
and configuration.  Its documents, the column `text` or the only column of strings, are joined by a blank line.  With
`max_chars` a data set is streamed and only what is needed is downloaded; without, it is prepared in the local cache of
`datasets` and then works offline.  Code that comes with a data set is never run.  A text is the beginning of a split:
nothing is shuffled.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ptq_eval.corpora.base import Text, TextSource, joined, marked_documents, text_digest
from ptq_eval.errors import TextSourceError

C4_DOCUMENTS = 1100
WIKITEXT = "Salesforce/wikitext"


@dataclass(frozen=True)
class _Recipe:
    path: str
    config: str | None
    split: str
    name: str
    separator: str = "\n\n"
    streaming: bool | None = None
    """None: only if `max_chars` is set."""
    documents: int | None = None


class HuggingFaceDataset(TextSource):
    """`hf:dataset[/configuration]:split`, `wikitext2[:split]` or `c4[:split]`."""

    name = "hf"
    help = "hf:DATASET[/CONFIG]:SPLIT, wikitext2[:SPLIT], c4[:SPLIT]: a data set of the Hugging Face hub"
    examples = (
        "wikitext2",
        "wikitext2:train",
        "wikitext2:validation",
        "c4",
        "c4:train",
        "hf:DATASET/CONFIG:SPLIT",
    )

    @classmethod
    def claims(cls, spec: str) -> bool:
        """A spec that starts with `hf:`, or one of the short names."""
        return spec.split(":")[0] in ("hf", "wikitext2", "c4")

    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The documents of one split, joined.

        Raises TextSourceError if the hub cannot be reached, for an unknown data set, configuration or split, and
        if there is no column of text.
        """
        recipe = _recipe(spec, max_chars)
        try:
            with _quiet("huggingface_hub", "datasets"):
                rows, revision = _rows(recipe, max_chars)
                text, starts = joined(_documents(rows, spec), recipe.separator, max_chars)
        except TextSourceError:
            raise
        except Exception as error:  # datasets passes on the errors of many libraries
            raise _unreadable(spec, error) from error
        where = "/".join(part for part in (recipe.path, recipe.config) if part)
        return Text(
            spec=spec,
            digest=text_digest(text, spec),
            text=text,
            name=recipe.name,
            notes=(f"{where}, split {recipe.split}, revision {revision}",),
            # The rows of WikiText are paragraphs.
            documents=marked_documents(text) if recipe.path == WIKITEXT else starts,
        )


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence the libraries' messages about retries; the final failure is reported once, as an error."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _recipe(spec: str, max_chars: int | None) -> _Recipe:
    kind, _, rest = spec.partition(":")
    if kind == "wikitext2":
        split = rest or "test"
        name = "wikitext2" if split == "test" else f"wikitext2-{split}"
        return _Recipe(WIKITEXT, "wikitext-2-raw-v1", split, name, streaming=False)
    if kind == "c4":
        split = rest or "validation"
        documents = C4_DOCUMENTS if max_chars is None else None
        name = "c4" if split == "validation" else f"c4-{split}"
        return _Recipe("allenai/c4", "en", split, name, separator=" ", streaming=True, documents=documents)
    dataset, _, split = rest.partition(":")
    parts = dataset.split("/")
    if not split or not all(parts) or len(parts) > 3:
        raise TextSourceError(
            "a data set needs a name, a split, and a configuration if it has several",
            got=spec,
            allowed="hf:DATASET:SPLIT or hf:ORGANISATION/DATASET/CONFIG:SPLIT",
            remedy="add the split" if not split else "see the data set's page for its name",
        )
    name = re.sub(r"[^\w.]+", "-", f"{dataset}-{split}").strip("-")
    return _Recipe("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split, name)


def _rows(recipe: _Recipe, max_chars: int | None) -> tuple[Iterable[Mapping[str, Any]], str]:
    """The rows of a split, and the revision (a commit of the hub) or "unknown"."""
    import datasets

    builder = datasets.load_dataset_builder(recipe.path, recipe.config)
    # For data sets of the hub, the builder's hash is the commit that the revision resolved to.
    commit = str(builder.hash or "")
    revision = commit if re.fullmatch("[0-9a-f]{40}", commit) else "unknown"
    streaming = max_chars is not None if recipe.streaming is None else recipe.streaming
    if not streaming:
        builder.download_and_prepare()
    # A single split is one data set, not a dictionary of them.
    rows: Any = (builder.as_streaming_dataset if streaming else builder.as_dataset)(split=recipe.split)
    return islice(rows, recipe.documents), revision


def _documents(rows: Iterable[Mapping[str, Any]], spec: str) -> Iterator[str]:
    column = None
    for row in rows:
        column = column or _text_column(row, spec)
        document = row[column]
        if document is not None:
            yield document


def _text_column(row: Mapping[str, Any], spec: str) -> str:
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in strings:
        return "text"
    if len(strings) == 1:
        return strings[0]
    raise TextSourceError(
        "the data set has neither a column `text` nor a single column of strings",
        got=f"{spec} with columns {', '.join(row)}",
        remedy="save the column as .jsonl or .parquet and name it: FILE#COLUMN",
    )


def _unreadable(spec: str, error: Exception) -> TextSourceError:
    said = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {said[:300]}"
    if re.search("(bad|unknown) split", said, re.IGNORECASE):
        return TextSourceError("unknown split of a data set", got=spec, allowed=said[:300], remedy="name another split")
    if re.search("BuilderConfig .* not found|config name is missing", said, re.IGNORECASE):
        return TextSourceError(
            "unknown or missing configuration of a data set",
            got=spec,
            allowed=said[:300],
            remedy="write hf:ORGANISATION/DATASET/CONFIG:SPLIT",
        )
    if isinstance(error, FileNotFoundError):
        return TextSourceError("no such data set", got=f"{spec} ({reason})", remedy="check its name on the hub")
    return TextSourceError(
        "the data set cannot be read",
        got=f"{spec} ({reason})",
        remedy="connect to the network, or use a local .txt, .jsonl or .parquet file, or stdlib:evaluation",
    )
