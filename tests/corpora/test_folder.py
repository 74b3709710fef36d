"""Markdown, HTML, PDF and text files of a folder. Run: pytest tests/corpora/test_folder.py"""

import json
from pathlib import Path

import pytest

from dream.corpora.bad_documents import BadDocumentPolicy
from dream.corpora.folder import FolderCorpus
from dream.utils.errors import ConfigError, DataError

pytest.importorskip("bs4", reason="needs pip install 'dream-retrieval[folder]'")
pytest.importorskip("pypdf", reason="needs pip install 'dream-retrieval[folder]'")

MARKDOWN = """---
title: "The guide"
---
Before any *heading*.

# Install

## From source
Run `make`, see [the page](https://example.org).

```
make  all
```

## Wheels
| a | b |
|---|---|
| 1 | two |
"""
HTML = """<html><head><title>A page</title><style>p {}</style></head><body><nav>menu</nav>
<h1>First</h1><p>some <b>bold</b>
text</p><!-- a comment --><ul><li>one<li>two</ul><h2>Second</h2><pre>a
b</pre><script>var x</script><footer>imprint</footer></body></html>"""


def folder(path: Path, split_by: str = "headings", pattern: str = "*", policy: str = "error", megabytes: float = 1):
    return FolderCorpus("mine", str(path), pattern, split_by, True, policy, megabytes, None)


def write_pdf(file: Path, pages: list[list[str]], title: str = "") -> None:
    """A PDF with these lines on its pages, as a browser would print them."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    numbers = []
    for lines in pages:
        text = "BT /F1 12 Tf 72 720 Td " + " ".join(f"({line}) Tj 0 -14 Td" for line in lines) + " ET"
        numbers.append(len(objects) + 1)
        page = (
            f"<< /Type /Page /Parent 2 0 R /Contents {len(objects) + 2} 0 R /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects += [page, f"<< /Length {len(text)} >>\nstream\n{text}\nendstream"]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects[1] = f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} /MediaBox [0 0 612 792] >>"
    objects.append(f"<< /Title ({title}) >>")
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n"
    file.write_text(f"{content}{head}{table}trailer\n{trailer}\nstartxref\n{len(content)}\n%%EOF")


def shown(corpus: FolderCorpus) -> list[tuple[str, str, str]]:
    return [(document.id, document.title, document.text) for document in corpus.documents()]


def test_markdown_is_cut_at_headings(tmp_path):
    (tmp_path / "guide.md").write_text(MARKDOWN)
    assert shown(folder(tmp_path)) == [
        ("guide.md:1", "The guide", "Before any heading."),
        ("guide.md:6", "The guide: From source", "Install\nFrom source\nRun make, see the page.\nmake all"),
        ("guide.md:15", "The guide: Wheels", "Wheels\na\nb\n1\ntwo"),
    ]


def test_html_without_markup_and_menus(tmp_path):
    (tmp_path / "page.html").write_text(HTML)
    assert shown(folder(tmp_path)) == [
        ("page.html:2", "A page: First", "First\nsome bold text\none\ntwo"),
        ("page.html:3", "A page: Second", "Second\na\nb"),
    ]
    ((_, title, text),) = shown(folder(tmp_path, "file"))
    assert title == "A page"
    assert text.startswith("First\nsome bold text")


def test_only_the_main_part_of_a_page_is_read(tmp_path):
    (tmp_path / "p.htm").write_bytes('<meta charset="latin-1"><div>side</div><main><p>für</p></main>'.encode("latin-1"))
    assert shown(folder(tmp_path)) == [("p.htm:1", "p.htm", "für")]


def test_a_page_inside_a_form_keeps_its_text(tmp_path):
    """Some servers wrap each page in one form. A page without text is an empty document, which the store counts."""
    choice = "<select><option>chosen</option></select>"
    (tmp_path / "form.html").write_text(f"<body><form><h1>H</h1><p>All the text.</p>{choice}</form></body>")
    (tmp_path / "none.html").write_text("<body><script>write()</script></body>")
    assert shown(folder(tmp_path)) == [("form.html:1", "H", "H\nAll the text."), ("none.html:1", "none.html", "")]


def test_line_ends_of_windows_are_line_ends(tmp_path):
    for name, text in (("unix", MARKDOWN), ("windows", MARKDOWN.replace("\n", "\r\n"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "guide.md").write_bytes(text.encode())
    assert shown(folder(tmp_path / "windows")) == shown(folder(tmp_path / "unix"))


def test_two_headings_in_one_line_have_different_ids(tmp_path):
    (tmp_path / "p.html").write_text("<h1>A</h1>a<h1>B</h1>b<h2>empty</h2>")
    assert [name for name, *_ in shown(folder(tmp_path))] == ["p.html:1", "p.html:1.2", "p.html:1.3"]


def test_pdf_by_page_and_as_a_whole(tmp_path):
    write_pdf(tmp_path / "paper.pdf", [["A divided exam-", "ple of text"], [], ["end"]], title="On words")
    assert shown(folder(tmp_path)) == [
        ("paper.pdf:1", "On words: page 1", "A divided example of text"),
        ("paper.pdf:3", "On words: page 3", "end"),
    ]
    assert len(shown(folder(tmp_path, "file"))) == 1


def test_refused_files_are_listed_and_the_others_read(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.md").write_text("hidden")
    (tmp_path / "sub" / "fine.txt").write_text("\ufefftext\n")
    (tmp_path / "latin.md").write_bytes(b"f\xfcr")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "wrong.txt").write_bytes(b"%PDF-1.4 nothing")
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16-le"))
    (tmp_path / "long.txt").write_text("a" * 1_000_001)
    write_pdf(tmp_path / "scan.pdf", [[], []])
    with (tmp_path / "list.jsonl").open("w") as listing:
        policy = BadDocumentPolicy("skip", listing)
        documents = list(folder(tmp_path, policy="skip").documents(policy.handle))
    assert [(document.id, document.text) for document in documents] == [("sub/fine.txt:1", "text")]
    listed = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert {Path(entry["file"]).name: entry["reason"] for entry in listed} == {
        "broken.pdf": "damaged PDF", "latin.md": "not UTF-8", "long.txt": "too long", "scan.pdf": "PDF without text",
        "utf16.txt": "NUL characters", "wrong.txt": "not text",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"broken\.pdf:0: no readable PDF .*corpus\.on_bad_document=skip"):
        list(folder(tmp_path).documents())


def test_files_of_other_kinds_are_reported(tmp_path, caplog):
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "b.docx").write_text("b")
    with caplog.at_level("INFO", logger="dream"):
        folder(tmp_path)
    assert "1 files are read; files of other kinds are not: 1 .docx" in caplog.text
    with pytest.raises(ConfigError, match=r"corpus\.path=.*no file that matches corpus\.pattern=\*\.docx ends with"):
        folder(tmp_path, pattern="*.docx")


def test_the_fingerprint_depends_on_files_and_names(tmp_path):
    (tmp_path / "a.md").write_text("a")
    before = folder(tmp_path).fingerprint()
    assert folder(tmp_path).fingerprint() == before
    (tmp_path / "a.md").rename(tmp_path / "b.md")
    assert folder(tmp_path).fingerprint() != before


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").touch()
    monkeypatch.setattr("dream.utils.errors.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"corpus=folder: needs the package pypdf: .*dream-retrieval\[folder\]"):
        folder(tmp_path)


def test_a_page_that_cannot_be_parsed_is_a_bad_document(tmp_path):
    (tmp_path / "bad.html").write_text("<p>usage: <![option]></p>")
    (tmp_path / "good.html").write_text("<h1>A</h1><svg></svg><p><![CDATA[ x \x1e y ]]></p>")
    assert [document.text for document in folder(tmp_path, policy="skip").documents()] == ["A\nx y"]
    with pytest.raises(DataError, match=r"bad\.html:1: no readable HTML"):
        list(folder(tmp_path).documents())
