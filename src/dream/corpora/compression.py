"""Recognises compressed files and files of other kinds by their first bytes."""

import bz2
import gzip
import importlib
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dream.utils.errors import DataError

HEAD_BYTES = 512  # enough for every magic number in this file; the one of tar is at byte 257
WINDOW_LOG_MAX = 31  # the maximum of Zstandard, for files made with `zstd --long=31`
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Compression:
    """One kind of compressed file. `unpack` takes an object with `read` and returns one with `read1`."""

    name: str
    suffixes: tuple[str, ...]
    magic: re.Pattern[bytes]
    unpack: Callable[[Any], Any]


def _unpack_zstandard(file: Any) -> Any:
    zstd = _zstandard()
    return zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX})


COMPRESSIONS = (
    Compression("gzip", (".gz",), re.compile(rb"\x1f\x8b"), lambda file: gzip.GzipFile(fileobj=file, mode="rb")),
    Compression("bzip2", (".bz2",), re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), bz2.BZ2File),
    Compression("xz", (".xz",), re.compile(rb"\xfd7zXZ\0"), lzma.LZMAFile),
    Compression("Zstandard", (".zst",), re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _unpack_zstandard),
)
SUFFIXES = tuple(suffix for compression in COMPRESSIONS for suffix in compression.suffixes)
# Files that are not text: first bytes, what they are, what to do.
_CONVERT = "write it as Parquet or JSON lines, e.g. with its library's to_parquet or to_json"
OTHER_KINDS = (
    (re.compile(PARQUET_MAGIC), "a Parquet file", "read it with corpus=jsonl, which reads Parquet too"),
    (re.compile(rb"PK\x03\x04"), "a zip archive or an Excel workbook", "unpack it, or save the table as CSV"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7-Zip archive", "unpack it with 7z x"),
    (re.compile(rb"(?s).{257}ustar"), "a tar archive", "unpack it with tar -xf"),
    (re.compile(rb"\x04\x22\x4d\x18"), "an LZ4 file", "unpack it with lz4 -d"),
    (re.compile(rb"(?s)ARROW1\0\0|\xff\xff\xff\xff..\0\0"), "an Arrow file", _CONVERT),
    (re.compile(rb"Obj\x01"), "an Avro file", _CONVERT),
    (re.compile(rb"\x89HDF\r\n"), "an HDF5 file", _CONVERT),
    (re.compile(rb"\x93NUMPY|\x80[\x02-\x05]"), "a NumPy or pickle file", _CONVERT),
    (re.compile(rb"SQLite format 3\0"), "an SQLite database", "write the table as CSV: sqlite3 -csv -header"),
    (re.compile(rb"%PDF-"), "a PDF file", "extract its text first, e.g. with pdftotext"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the file itself", "fetch it with git lfs pull"),
)


def compression_of(head: bytes) -> Compression | None:
    """The compression whose files begin with these bytes; None if there is none."""
    return next((compression for compression in COMPRESSIONS if compression.magic.match(head)), None)


def expected_compression(path: Path) -> Compression | None:
    """The compression that the file's suffix stands for."""
    suffix = path.suffix.lower()
    return next((compression for compression in COMPRESSIONS if suffix in compression.suffixes), None)


def without_compression_suffix(path: Path) -> Path:
    """The path without the suffix of a compression: `a.jsonl.gz` becomes `a.jsonl`."""
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def other_kind(head: bytes) -> tuple[str, str] | None:
    """(what it is, what to do) if a file with these first bytes is of a known kind that is not text."""
    return next(((kind, remedy) for magic, kind, remedy in OTHER_KINDS if magic.match(head)), None)


def unpacking_errors() -> tuple[type[Exception], ...]:
    """The errors that the libraries raise for damaged files, in addition to OSError."""
    errors: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError)
    try:
        return (*errors, _zstandard().ZstdError)
    except DataError:
        return errors


def _zstandard() -> ModuleType:
    """Python 3.14 has this module in its standard library; `backports.zstd` is the same one for earlier versions."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DataError("a package that reads Zstandard is not installed: pip install 'dream-retrieval[zstd]'")
