"""Reads Parquet with the optional package pyarrow: batch by batch, and only the columns that are needed."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from dream.corpora.bad_documents import BadDocument
from dream.corpora.readers.records import ID_NAMES, Fields, Records
from dream.corpora.source_file import SourceFile
from dream.utils.errors import DataError

BATCH_BYTES = 8_000_000  # decoded at once, estimated from the average size of a row
MOST_ROWS = 256
BUFFER_BYTES = 2**20  # read from each column at once; without a buffer size, pyarrow reads whole row groups


def read_parquet(source: SourceFile, fields: Fields, most_bytes: int) -> Records:
    """Yield each row as a record of the columns in `fields`, with its number from 1.

    Nested columns become dictionaries and lists. If no column has the id's name, columns with a similar name are also
    read, so that the caller can name them in an error.
    """
    pyarrow, parquet = _modules(source)
    number = 0
    try:
        with parquet.ParquetFile(source.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            names = file.schema_arrow.names
            fields.require_text(str(source.path), names)
            columns = _columns(names, fields)
            for group in range(file.num_row_groups):
                rows = _rows_at_once(file.metadata.row_group(group))
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    for record in _rows(source, batch, number):
                        number += 1
                        yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source.path}:{number + 1}: damaged or unreadable Parquet file ({reason}); {number:,} whole "
                        "rows are before the damage: fetch or write the file again") from error  # fmt: skip
    source.require_unchanged(number)


def _columns(names: list[str], fields: Fields) -> list[str]:
    """The columns to read. `a.b` reads only part b of the nested column a."""
    wanted = [name for name in fields.names if name in names or name.split(".")[0] in names]
    if not any(name in wanted for name in fields.ids):
        wanted += [name for name in ID_NAMES if name in names]
    return list(dict.fromkeys(wanted))


def _rows_at_once(group: Any) -> int:
    """Number of rows of a batch with about BATCH_BYTES bytes."""
    bytes_per_row = max(1, group.total_byte_size // max(1, group.num_rows))
    return max(1, min(MOST_ROWS, BATCH_BYTES // bytes_per_row))


def _rows(source: SourceFile, batch: Any, before: int) -> Iterator[dict[str, Any] | BadDocument]:
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # nothing was yielded: convert row by row, to find the bad one
    for row in range(batch.num_rows):
        try:
            yield from batch.slice(row, 1).to_pylist()
        except UnicodeDecodeError as error:
            number = before + row + 1
            yield BadDocument(str(source.path), number, "not UTF-8", f"not valid UTF-8 ({error.reason}) in this row")


def _modules(source: SourceFile) -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{source.path}: a package that reads Parquet is not installed: "
                        "pip install 'dream-retrieval[parquet]'") from error  # fmt: skip
    return pyarrow, pyarrow.parquet
