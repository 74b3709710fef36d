"""Code, configs and pages are written in plain English. Run: pytest tests/test_words.py"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Words that readers stumbled over, and what to write instead.
BANNED = {
    r"(?:go|goes|going|gone) on": "continue, resume",
    r"anew": "again, rebuilt",
    r"told|tells": "reported, logged, says",
    r"mend(?:s|ed|ing)?": "fix",
    r"rivals?": "baseline",
    r'(?<!")aside': "temporary, except",  # HTML has an element "aside"
    r"whence|wherein|thereof|hereby|nought": "a plain word",
}
PATTERN = re.compile("|".join(rf"\b(?:{word})\b" for word in BANNED), re.IGNORECASE)
SUFFIXES = {".py", ".yaml", ".yml", ".md", ".toml", ".cff"}
FOLDERS = ("src", "conf", "tests", "benchmarks", "docs", ".github")


def texts() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    found += [ROOT / "data" / "README.md", ROOT / "logs" / "README.md"]
    return sorted(path for path in found if path != Path(__file__))


@pytest.mark.parametrize("file", texts(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_banned_word(file):
    lines = enumerate(file.read_text().splitlines(), start=1)
    assert [f"{number}: {line.strip()}" for number, line in lines if PATTERN.search(line)] == []


@pytest.mark.parametrize("line", ["the run goes on", "made anew", "as told", "Mend it", "the rival", "set aside"])
def test_the_pattern_finds_them(line):
    assert PATTERN.search(line)
