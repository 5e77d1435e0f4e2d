"""Rows of tables in Parquet, and in Arrow as files or streams (`datasets` saves streams, Feather is a file)."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from ptq_eval.corpora.documents import missing_field
from ptq_eval.corpora.files import open_bytes
from ptq_eval.errors import TextSourceError

TABLES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM = b"\xff\xff\xff\xff"
"""Before the size of each message; files of before Arrow 0.15 lack it and are recognised by nothing."""


def is_table(start: bytes) -> bool:
    """Whether a file that begins with `start` is a table that `read_table` reads."""
    return start.startswith((_PARQUET, _ARROW_FILE, _ARROW_STREAM))


def read_table(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The rows of a table as objects of one column, each with its place.  Raises TextSourceError."""
    import pyarrow

    try:
        with open_bytes(path) as file:
            schema, batches = _opened(file if file.seekable() else io.BytesIO(file.read()))
            # Placeholders for the columns that are not read, for messages: which there are, and which hold strings.
            others = {field.name: "" if _holds_strings(field.type) else None for field in schema}
            parts = field.split(".")
            heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            column = next((head for head in heads if head in schema.names), None)
            if column is None:
                raise missing_field(path, field, others)
            if schema.names.count(column) > 1:
                what, remedy = f"the table has several columns {column!r}", "rename all but one of them"
                raise TextSourceError(what, got=path, remedy=remedy)
            values = (value for batch in batches(column) for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, 1):
                yield f"row {number}", {**others, column: value}
    except pyarrow.ArrowException as error:
        what = "the file is not a readable table in Parquet or Arrow"
        raise TextSourceError(what, got=f"{path} ({error})", remedy="fetch it again") from error


def _opened(file: IO[bytes]) -> tuple[Any, Callable[[str], Iterable[Any]]]:
    """The schema, and a function from the name of a column to its batches."""
    import pyarrow.parquet

    start = file.read(len(_ARROW_FILE))
    file.seek(0)
    if not start.startswith((_ARROW_FILE, _ARROW_STREAM)):
        table = pyarrow.parquet.ParquetFile(file)
        return table.schema_arrow, lambda column: table.iter_batches(batch_size=1024, columns=[column])
    if start.startswith(_ARROW_STREAM):
        stream = pyarrow.ipc.open_stream(file)
        return stream.schema, lambda column: (batch.select([column]) for batch in stream)
    stored = pyarrow.ipc.open_file(file)
    batches = map(stored.get_batch, range(stored.num_record_batches))
    return stored.schema, lambda column: (batch.select([column]) for batch in batches)


def _holds_strings(kind: Any) -> bool:
    """Whether a column of this type holds strings, as they are or as a dictionary's values."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
