"""Writers of small files in every format that is read."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

COMPRESSIONS = ["", ".gz", ".bz2", ".xz", ".zst"]


def compress(content: bytes, suffix: str) -> bytes:
    """The content as a file with this suffix has it."""
    if suffix == ".zst":
        zstd = pytest.importorskip("backports.zstd")
        return zstd.compress(content, options={zstd.CompressionParameter.checksum_flag: 1})
    pack: dict[str, Callable[[bytes], bytes]] = {
        "": bytes,
        ".gz": partial(gzip.compress, mtime=0),  # the time would make names of tests differ between processes
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    return pack[suffix](content)


def write_records(path: Path, records: list[dict], **options) -> Path:
    """Write records in the format that the suffixes of `path` name."""
    packed = path.suffix if path.suffix in COMPRESSIONS else ""
    form = path.with_suffix("").suffix if packed else path.suffix
    if form == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), path, **options)
        return path
    plain = path.with_name("plain")
    with plain.open("w", encoding="utf-8", newline="") as file:
        if form == ".jsonl":
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        elif form == ".json":
            json.dump(records, file, **options)
        else:
            options = {"delimiter": "\t", "lineterminator": "\n"} if form == ".tsv" else options
            writer = csv.DictWriter(file, list(records[0]), **options)
            writer.writeheader()
            writer.writerows(records)
    path.write_bytes(compress(plain.read_bytes(), packed))
    plain.unlink()
    return path
