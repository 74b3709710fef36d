"""Makes test collections from Debian's files, to test what was chosen on others.

    curl -O http://deb.debian.org/debian/dists/bookworm/main/i18n/Translation-en.xz
    apt-get install perl-doc python3.11-doc          # or: apt-get download, then dpkg-deb -x
    python benchmarks/debian_collections.py --descriptions Translation-en.xz --pods /usr/share/perl/5.36.0/pod \\
        --sources /usr/share/doc/python3.11/html/_sources --out unseen

- packages: a document is the long description of a package; 1,500 of the one-line descriptions are queries.
- faq: a document is a section of the documentation of Perl and Python without its heading; the headings of their FAQs
  that are questions are queries.
- pages: the same sections and queries, but a document is a whole page: 598 long documents.

All are written in BEIR's layout, with one relevant document for each query, all in the split test. Then:

    dream-train experiment=quickstart corpus=beir corpus.path=unseen/faq evaluation.report_split=test
"""

import argparse
import json
import lzma
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from dream.utils.logging import get_logger

log = get_logger(__name__)

QUERIES, SEED = 1500, 5
LEAST_WORDS = {"packages": 20, "faq": 15, "pages": 15}  # of a document, or of a section of a page
LEAST_QUERY_WORDS = 4  # of a package's one-line description
RST_LINE = re.compile(r"^([=\-~^*\"])\1{3,}$")  # below a heading
RST_RULE = re.compile(r"^([=\-~^*\"#])\1{3,}$")


class Document(NamedTuple):
    """`query` is None if no query asks for the document."""

    id: str
    text: str
    query: str | None


def packages(descriptions: Path) -> list[Document]:
    """Packages with a long description of their own; a text and a name count once."""
    found, texts, names = [], set(), set()
    for block in lzma.decompress(descriptions.read_bytes()).decode().split("\n\n"):
        name = re.search(r"^Package: (.*)", block, re.MULTILINE)
        description = re.search(r"^Description-en: (.*)\n((?: .*\n?)*)", block, re.MULTILINE)
        if not (name and description):
            continue
        lines = ("" if line.strip() == "." else line.strip() for line in description[2].splitlines())
        text = "\n".join(lines).strip()
        if len(text.split()) >= LEAST_WORDS["packages"] and text not in texts and name[1] not in names:
            texts.add(text)
            names.add(name[1])
            found.append(Document(name[1], text, description[1].strip()))
    askable = [row for row in found if row.query and len(row.query.split()) >= LEAST_QUERY_WORDS]
    asked = {row.id for row in random.Random(SEED).sample(askable, QUERIES)}
    return [row if row.id in asked else row._replace(query=None) for row in found]


def pod_sections(folder: Path) -> Iterator[Document]:
    """Sections of Perl's documentation. Lists of changes and the table of contents are left out."""
    for file in sorted(folder.glob("*.pod")):
        name = file.stem
        if name == "perltoc" or re.fullmatch(r"perl5.*delta", name):
            continue
        sections = re.split(r"^=head[123] ", file.read_text(encoding="utf-8", errors="replace"), flags=re.MULTILINE)
        for number, section in enumerate(sections[1:]):
            heading, _, body = section.partition("\n")
            text = re.sub(r"[A-Z]<<* ?([^<>]*?) ?>*>", r"\1", body)
            lines = (line for line in text.splitlines() if not re.match(r"=\w+", line) or line.startswith("=item"))
            heading = re.sub(r"[A-Z]<([^<>]*)>", r"\1", heading).strip()
            is_question = "faq" in name and heading.endswith("?")
            yield Document(f"{name}-{number}", "\n".join(lines).replace("=item ", "- ").strip(),
                           heading if is_question else None)  # fmt: skip


def rst_sections(folder: Path) -> Iterator[Document]:
    """Sections of Python's documentation, without what is new in each version."""
    for file in sorted(folder.glob("*/*.rst.txt")):
        if file.parent.name == "whatsnew":
            continue
        sections: list[tuple[str, list[str]]] = []
        lines = file.read_text(encoding="utf-8").splitlines()
        number = 0
        while number < len(lines):
            line, below = lines[number], lines[number + 1] if number + 1 < len(lines) else ""
            if line.strip() and RST_LINE.match(below) and len(below) >= len(line) - 1:
                sections.append((line.strip(), []))
                number += 2
                continue
            if sections and not RST_RULE.match(line) and not line.startswith(".. "):
                sections[-1][1].append(line)
            number += 1
        for place, (heading, body) in enumerate(sections):
            is_question = file.parent.name == "faq" and heading.endswith("?")
            yield Document(f"{file.parent.name}-{file.name.removesuffix('.rst.txt')}-{place}", "\n".join(body).strip(),
                           re.sub(r"[`:]", "", heading) if is_question else None)  # fmt: skip


def page(section: str) -> str:
    """Id of the page of a section."""
    return section.rpartition("-")[0]


def write(folder: Path, documents: Iterable[Document], name: Callable[[str], str] = str) -> None:
    """Write the collection in BEIR's layout. Documents with the same `name` of their ids are one document."""
    (folder / "qrels").mkdir(parents=True)
    kept = [row for row in documents if len(row.text.split()) >= LEAST_WORDS[folder.name]]
    asked = [row for row in kept if row.query]
    texts: dict[str, list[str]] = {}
    for row in kept:
        texts.setdefault(name(row.id), []).append(row.text)
    rows = [{"_id": document, "title": "", "text": "\n\n".join(parts)} for document, parts in texts.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"_id": f"q-{row.id}", "text": row.query} for row in asked]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = "".join(f"q-{row.id}\t{name(row.id)}\t1\n" for row in asked)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + labels)
    log.info(f"{folder}: {len(texts):,} documents, {len(asked):,} queries")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--descriptions", type=Path, required=True, help="Debian's Translation-en.xz")
    parser.add_argument("--pods", type=Path, required=True, help="folder of Perl's .pod files")
    parser.add_argument("--sources", type=Path, required=True, help="folder _sources of Python's documentation")
    parser.add_argument("--out", type=Path, required=True, help="folder for the collections")
    options = parser.parse_args()
    write(options.out / "packages", packages(options.descriptions))
    sections = [*pod_sections(options.pods), *rst_sections(options.sources)]
    write(options.out / "faq", sections)
    write(options.out / "pages", sections, page)
