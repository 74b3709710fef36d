"""Makes a corpus of any size from a text file: its documents, then the same again with their sentences shuffled."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

SENTENCE = re.compile(r"(?<=[.!?])\s+")
CHARACTERS = 1500  # of a document, at least; the last document of a text may be shorter


def documents(source: Path, seed: int = 0) -> Iterator[str]:
    """Endless documents of consecutive lines. From the second round on, the sentences of each are shuffled."""
    draw, lines = random.Random(seed), source.read_text(encoding="utf-8").splitlines()
    while True:
        part: list[str] = []
        for line in filter(str.strip, lines):
            part.append(line)
            if sum(map(len, part)) >= CHARACTERS:
                yield "\n".join(part)
                part = []
        lines = [" ".join(_shuffled(SENTENCE.split(line), draw)) for line in lines]
        draw.shuffle(lines)


def _shuffled(sentences: list[str], draw: random.Random) -> list[str]:
    draw.shuffle(sentences)
    return sentences


def write_jsonl(source: Path, file: Path, megabytes: float, seed: int = 0) -> Path:
    """Write documents until the file has this size. It is reused if it exists with about this size."""
    if file.exists() and abs(file.stat().st_size / 1e6 - megabytes) < 1:
        return file
    with file.open("w", encoding="utf-8") as lines:
        for number, text in enumerate(documents(source, seed)):
            lines.write(json.dumps({"_id": f"d{number}", "text": text}, ensure_ascii=False) + "\n")
            if number % 100 == 0 and lines.tell() >= megabytes * 1e6:
                return file
    return file
