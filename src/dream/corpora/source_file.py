"""Lines of files that others wrote: read in bounded memory, and compared with what was fingerprinted."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dream.utils.atomic_io import FINGERPRINT_CHARACTERS
from dream.utils.errors import DataError

BLOCK_BYTES = 2**17
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"


class SourceFile:
    """A file of text, plain or gzip. What is read must be what was fingerprinted, where a fingerprint was taken.

    Reading sums up the bytes of the file with CRC-32, which costs a sixth of the fingerprint's own hash.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fingerprint: str | None = None
        self._fingerprinted = (0, 0)  # bytes, CRC-32

    def fingerprint(self) -> str:
        """Short hash of the file's bytes, taken once (about 1.5 s per GB)."""
        if self._fingerprint is None:
            digest = hashlib.blake2b()
            try:
                with self.path.open("rb", buffering=0) as file:
                    summed = _Summed(file)
                    while block := summed.read(BLOCK_BYTES):
                        digest.update(block)
            except OSError as error:
                raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error
            self._fingerprinted = summed.size, summed.crc
            self._fingerprint = digest.hexdigest()[:FINGERPRINT_CHARACTERS]
        return self._fingerprint

    def lines(self, most_bytes: int) -> Iterator[tuple[int, bytes | None]]:
        """(number from 1, line without its end and byte order mark); None in place of a line over `most_bytes`.

        Lines end with LF, CRLF or CR. A file that is damaged, unreadable or not what was fingerprinted is an error,
        whatever the policy: nobody knows which of its lines are what their author wrote.
        """
        number = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                summed = _Summed(file)
                for number, line in enumerate(_split(_unix_ends(self._blocks(summed)), most_bytes), start=1):
                    yield number, line.removeprefix(BYTE_ORDER_MARK) if line else line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.path}:{number + 1}: damaged gzip file ({error}); {number:,} whole lines are before "
                            "the damage: fetch or pack the file again") from error  # fmt: skip
        except OSError as error:
            raise DataError(f"{self.path}:{number + 1}: cannot be read ({error.strerror})") from error
        if self._fingerprint is not None and self._fingerprinted != (summed.size, summed.crc):
            raise DataError(f"{self.path}: changed between the start of this run and line {number:,}, the last one "
                            "read; run again when nobody writes to it")  # fmt: skip

    def _blocks(self, file: "_Summed") -> Iterator[bytes]:
        if self.path.suffix == ".gz":
            with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:  # type: ignore[call-overload]  # only read() is used
                while block := unpacked.read1(BLOCK_BYTES):
                    yield block
        while block := file.read(BLOCK_BYTES):
            if file.size == len(block) and block.startswith(GZIP_MAGIC):
                raise DataError(f"{self.path}: a gzip file whose name does not end in .gz; rename it")
            yield block


class _Summed:
    """A binary file that sums up what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.crc = file, 0, 0

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.size += len(block)
        self.crc = zlib.crc32(block, self.crc)
        return block


def _unix_ends(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks with CRLF and CR turned into LF; a CR at the end of a block waits for the next one."""
    held = b""
    for block in blocks:
        if held or b"\r" in block:
            block = held + block
            held = b"\r" if block.endswith(b"\r") else b""
            block = block.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield block
    if held:
        yield b"\n"


def _split(blocks: Iterator[bytes], most_bytes: int) -> Iterator[bytes | None]:
    """The lines of the blocks, which may span many; of a line over `most_bytes` no more than that is held."""
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        start, *others = block.split(b"\n")
        size += len(start)
        if size <= most_bytes:
            parts.append(start)
        if others:
            line, parts = b"".join(parts) if size <= most_bytes else None, []
            yield line
            *whole, last = others
            for line in whole:
                yield line if len(line) <= most_bytes else None
            parts, size = [last], len(last)
    if size:
        yield b"".join(parts) if size <= most_bytes else None
