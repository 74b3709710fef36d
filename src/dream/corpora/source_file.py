"""Reads a user's file in bounded memory: unpacks it, and checks that it has not changed during the run."""

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dream.corpora.bad_documents import BadDocument
from dream.corpora.compression import (
    HEAD_BYTES,
    PARQUET_MAGIC,
    Compression,
    compression_of,
    expected_compression,
    other_kind,
    unpacking_errors,
)
from dream.corpora.lines import split_lines
from dream.utils.atomic_io import FINGERPRINT_CHARACTERS
from dream.utils.errors import DataError

BLOCK_BYTES = 2**17
COMPRESSION_RATIO = 4  # of text, about

Item = TypeVar("Item")


class SourceFile:
    """A file, plain or compressed (gzip, bzip2, xz, Zstandard). The compression is recognised by the first bytes.

    After a call of `fingerprint`, reading verifies with CRC-32 that the bytes are still the same. CRC-32 takes a sixth
    of the time of the fingerprint's hash.

    Args:
        path: An existing file.

    Example:
        >>> for number, line in SourceFile(Path("my.jsonl.gz")).lines(most_bytes=1_000_000):
        ...     print(number, line)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fingerprint: str | None = None
        self._fingerprinted = (0, 0)  # bytes, CRC-32
        self._stamp = (0, 0)  # bytes, time of the last change in ns

    def fingerprint(self) -> str:
        """Short hash of the file's bytes, computed once (about 1.5 s per GB)."""
        if self._fingerprint is None:
            digest = hashlib.blake2b()
            try:
                self._stamp = self._stamp_now()
                with self.path.open("rb", buffering=0) as file:
                    summed = _Summed(file)
                    while block := summed.read(BLOCK_BYTES):
                        digest.update(block)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
            self._fingerprinted = summed.size, summed.crc
            self._fingerprint = digest.hexdigest()[:FINGERPRINT_CHARACTERS]
        return self._fingerprint

    def text_bytes(self) -> int:
        """Approximate size after unpacking, without reading the file."""
        with self.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        packed = compression_of(head) is not None or head.startswith(PARQUET_MAGIC)
        return self.path.stat().st_size * (COMPRESSION_RATIO if packed else 1)

    def require_unchanged(self, number: int) -> None:
        """Compare size and time of the last change. For readers that do not read every byte.

        Raises:
            DataError: The file has changed since `fingerprint`. `number` is the last row that was read.
        """
        if self._fingerprint is not None and self._stamp != self._stamp_now():
            raise self._changed(number)

    def head(self) -> bytes:
        """The first bytes after unpacking; empty if the file is empty."""
        return next((block for _, block in self.numbered(self.blocks(), "blocks")), b"")

    def lines(self, most_bytes: int) -> Iterator[tuple[int, bytes | None]]:
        """Yield (number from 1, line without line end and byte order mark). A line over `most_bytes` is None."""
        return self.numbered(split_lines(self.blocks(), most_bytes), "lines")

    def lines_at(self, pieces: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield whole lines from evenly spaced places of a file that is not compressed; otherwise nothing."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if self._compression(file.read(HEAD_BYTES)):
                return
            for place in range(0, size, max(piece_bytes, -(-size // pieces))):
                file.seek(max(0, place - 1))
                if place:
                    file.readline()  # the rest of a line that began before
                end = place + piece_bytes
                while file.tell() < end and (line := file.readline()):
                    yield line.rstrip(b"\r\n")

    def numbered(self, items: Iterator[Item], kind: str) -> Iterator[tuple[int, Item]]:
        """Number items that were made from `blocks`, from 1.

        Raises:
            DataError: The file is damaged, unreadable or changed. `corpus.on_bad_document` does not apply, because any
                line of the file may be wrong.
        """
        number = 0
        try:
            for number, item in enumerate(items, start=1):
                yield number, item
        except _Damage as error:
            raise DataError(f"{self.path}:{number + 1}: damaged {error} file ({error.__cause__}); {number:,} whole "
                            f"{kind} are before the damage: fetch or pack the file again") from error  # fmt: skip
        except _Changed as error:
            raise self._changed(number) from error
        except OSError as error:
            raise DataError(f"{self.path}:{number + 1}: cannot be read ({error.strerror})") from error

    def blocks(self) -> Iterator[bytes]:
        """Yield the unpacked bytes. Use it through `numbered`, which adds the line number to errors."""
        with self.path.open("rb", buffering=0) as file:
            summed = _Summed(file)
            compression = self._compression(summed.peek(HEAD_BYTES))
            first = True
            for block in self._unpacked(summed, compression) if compression else iter(_reader(summed), b""):
                if first and (found := other_kind(block)):
                    raise BadDocument(
                        str(self.path), 1, "not text", f"this is {found[0]}, which is not text; {found[1]}"
                    )
                first = False
                yield block
            while summed.read(BLOCK_BYTES):  # bytes after the end of the compressed data, which the library ignores
                pass
        if self._fingerprint is not None and self._fingerprinted != (summed.size, summed.crc):
            raise _Changed

    def _compression(self, head: bytes) -> Compression | None:
        """How the file is compressed. Raises DataError if only the suffix is that of a compressed file."""
        found, expected = compression_of(head), expected_compression(self.path)
        if found is None and expected is not None and head:
            raise DataError(f"{self.path}:1: damaged {expected.name} file (it does not begin like one); 0 whole lines "
                            f"are before the damage: fetch it again, or remove {self.path.suffix} from the name if it "
                            "is not compressed")  # fmt: skip
        return found

    def _unpacked(self, file: "_Summed", compression: Compression) -> Iterator[bytes]:
        try:
            unpacked = compression.unpack(file)
        except DataError as error:  # a missing package
            raise DataError(f"{self.path}: {error}") from error
        errors: tuple[type[Exception], ...] = (*unpacking_errors(), OSError)
        with unpacked:
            while True:
                try:
                    block = unpacked.read1(BLOCK_BYTES)
                except errors as error:
                    if isinstance(error, OSError) and error.errno:  # from the disk, not from the library
                        raise
                    raise _Damage(compression.name) from error
                if not block:
                    return
                yield block

    def _changed(self, number: int) -> DataError:
        return DataError(f"{self.path}: changed between the start of this run and line {number:,}, the last one "
                         "read; run again when no other process writes to it")  # fmt: skip

    def _stamp_now(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns


class _Damage(Exception):
    """A compressed file is damaged; the cause is the library's error."""


class _Changed(Exception):
    """The file's bytes have changed since its fingerprint was computed."""


def _reader(file: "_Summed") -> Any:
    return lambda: file.read(BLOCK_BYTES)


class _Summed:
    """A binary file that computes size and CRC-32 of the bytes read from it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.crc = file, 0, 0
        self.ahead = b""

    def peek(self, size: int) -> bytes:
        """The first bytes, which `read` returns again. Call it once, before `read`."""
        self.ahead = self.file.read(size)
        return self.ahead

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        block = b""
        if self.ahead:
            block, self.ahead = self.ahead[:size], self.ahead[size:]
        if not self.ahead and len(block) < size:
            block += self.file.read(size - len(block))
        self.size += len(block)
        self.crc = zlib.crc32(block, self.crc)
        return block
