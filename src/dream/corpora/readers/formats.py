"""Chooses the reader of a file: by its suffix, and by its first bytes."""

from collections.abc import Callable

from dream.corpora.compression import PARQUET_MAGIC, without_compression_suffix
from dream.corpora.readers.delimited import read_csv, read_tsv
from dream.corpora.readers.json_array import read_json_array
from dream.corpora.readers.jsonl import read_jsonl
from dream.corpora.readers.parquet import read_parquet
from dream.corpora.readers.records import Fields, Records
from dream.corpora.source_file import SourceFile

READERS: dict[str, Callable[[SourceFile, Fields, int], Records]] = {
    "jsonl": read_jsonl,
    "json": read_json_array,
    "csv": read_csv,
    "tsv": read_tsv,
    "parquet": read_parquet,
}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",  # or JSON lines, see below
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def format_of(source: SourceFile, default: str = "jsonl") -> str:
    """A key of READERS for this file, or `default` if neither suffix nor first bytes identify the format."""
    with source.path.open("rb") as file:
        if file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
            return "parquet"
    found = SUFFIXES.get(without_compression_suffix(source.path).suffix.lower(), default)
    if found == "json":  # many tools give JSON lines this suffix
        head = source.head().removeprefix(b"\xef\xbb\xbf").lstrip()
        return "json" if head.startswith(b"[") else "jsonl"
    return found


def format_by_content(source: SourceFile) -> str:
    """A key of READERS for a file of queries or labels. For a suffix that names no format, the first line chooses it.

    TREC's columns, which are separated by tabs or blanks, count as tsv. A .csv with tabs and no comma is a tsv, and a
    .tsv with commas and no tab is a csv.
    """
    by_suffix = format_of(source, default="")
    if by_suffix in ("parquet", "json", "jsonl"):
        return by_suffix
    lines = source.head().removeprefix(b"\xef\xbb\xbf").lstrip().splitlines()[:1]
    line = lines[0] if lines else b""
    if not by_suffix and line.startswith((b"{", b"[")):
        return "jsonl" if line.startswith(b"{") else "json"
    if b"\t" in line:
        return "tsv"
    if b"," in line or b";" in line:
        return "csv" if by_suffix or len(line.split()) not in (3, 4) else "tsv"
    return by_suffix or "tsv"


def read_records(source: SourceFile, fields: Fields, most_bytes: int, form: str | None = None) -> Records:
    """Yield (number, record) of a file, in bounded memory.

    Args:
        source: The file.
        fields: Readers of tables read only these columns.
        most_bytes: A record longer than this is a bad document.
        form: A key of READERS; None: `format_of` chooses it.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    return READERS[form or format_of(source)](source, fields, most_bytes)
