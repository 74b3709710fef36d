"""Splits blocks of bytes into lines in bounded memory, and decodes them."""

from collections.abc import Iterator

from dream.corpora.bad_documents import BadDocument

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def split_lines(blocks: Iterator[bytes], most_bytes: int) -> Iterator[bytes | None]:
    """Yield each line without its end (LF, CRLF or CR) and without a byte order mark. Yield None for a longer line.

    A line may span many blocks. At most `most_bytes` bytes of it are kept in memory.
    """
    for line in _split(_unix_ends(blocks), most_bytes):
        yield line.removeprefix(BYTE_ORDER_MARK) if line else line


def decoded(file: str, number: int, line: bytes | None, most_bytes: int) -> str:
    """The text of a line.

    Raises:
        BadDocument: The line was longer than `most_bytes`, or is not UTF-8.
    """
    if line is None:
        raise too_long(file, number, most_bytes)
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        remedy = "convert the file to UTF-8"
        if number == 1 and line.startswith(UTF16_MARKS):
            remedy = "this is UTF-16; convert the file with iconv -f UTF-16 -t UTF-8"
        detail = f"not valid UTF-8 ({error.reason} at byte {error.start + 1}); {remedy}"
        raise BadDocument(file, number, "not UTF-8", detail) from error


def refuse_binary(file: str, number: int, text: str) -> None:
    """Raise BadDocument for a plain text with NUL characters."""
    if "\0" in text:
        detail = "NUL characters: this is no plain text in UTF-8, but binary or UTF-16"
        raise BadDocument(file, number, "NUL characters", detail)


def too_long(file: str, number: int, most_bytes: int) -> BadDocument:
    """The error for a document of more than `most_bytes`."""
    megabytes = f"{most_bytes / 1e6:g}"
    detail = f"longer than corpus.max_document_mb={megabytes}; raise it or split the document"
    return BadDocument(file, number, "too long", detail)


def _unix_ends(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Turn CRLF and CR into LF. A CR at the end of a block is handled with the next block."""
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
