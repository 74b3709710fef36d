"""Reads JSON lines: each line is a JSON object."""

import json
from typing import Any

from dream.corpora.bad_documents import BadDocument
from dream.corpora.lines import decoded
from dream.corpora.readers.records import Fields, Records
from dream.corpora.source_file import SourceFile

OTHER_FORMATS = ("one JSON object a line is expected; other formats are recognised by their suffix: .json (one array), "
                 ".csv, .tsv, .parquet; plain text is read by corpus=text")  # fmt: skip


def read_jsonl(source: SourceFile, fields: Fields, most_bytes: int) -> Records:
    """Yield the object of each line that is not blank."""
    file = str(source.path)
    for number, line in source.lines(most_bytes):
        if line is not None and not line.strip():
            continue
        try:
            yield number, json_object(file, number, line, most_bytes)
        except BadDocument as bad:
            if number == 1 and bad.reason in ("not JSON", "no object"):  # perhaps the file has another format
                bad = BadDocument(file, number, bad.reason, f"{bad.detail}; {OTHER_FORMATS}")
            yield number, bad


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON; write null instead")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def json_object(file: str, number: int, line: bytes | None, most_bytes: int) -> dict[str, Any]:
    """Parse these bytes as a JSON object.

    Raises:
        BadDocument: They are not a JSON object.
    """
    text = decoded(file, number, line, most_bytes)
    try:
        record = _decoder.decode(text)
    except json.JSONDecodeError as error:
        detail = f"not valid JSON ({error.msg} at character {error.pos + 1})"
        raise BadDocument(file, number, "not JSON", detail) from error
    except RecursionError as error:
        raise BadDocument(file, number, "not JSON", "JSON nested too deeply to be read") from error
    except ValueError as error:  # NaN, infinities, and numbers with thousands of digits
        raise BadDocument(file, number, "not JSON", f"not valid JSON ({error})") from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise BadDocument(file, number, "no object", f"a JSON object is needed here, not {kind}")
    return record
