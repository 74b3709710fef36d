"""Extracts text from HTML with BeautifulSoup: without scripts, menus and markup."""

import re
from typing import TYPE_CHECKING, Any

from dream.corpora.extract.sections import Extract, Section

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
DROPPED = ["script", "style", "noscript", "template", "nav", "footer", "aside", "button", "select", "textarea", "svg",
           "iframe"]  # fmt: skip
BLOCKS = ["address", "article", "blockquote", "caption", "dd", "div", "dl", "dt", "fieldset", "figcaption", "figure",
          "header", "hr", "li", "main", "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul"]  # fmt: skip
LINE_ATTRIBUTE = "data-dream-line"  # set on headings by extract/markdown.py
# Control characters that mark places in the text; they are removed from the input first.
BLOCK, LINE_END, HEADING, HEADING_END = "\x1c", "\x1d", "\x1e", "\x1f"
_MARKS = re.compile(f"[{BLOCK}{LINE_END}{HEADING}{HEADING_END}]")


def extract_html(markup: bytes | str) -> Extract:
    """The text of an HTML page, cut at headings. The encoding is the declared one, otherwise UTF-8 if it fits.

    If the page has one `main` element, or one `article`, only this element is read.

    Raises:
        ValueError: the page cannot be parsed.
    """
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    try:
        soup = BeautifulSoup(markup, "html.parser")
    except ParserRejectedMarkup as error:
        raise ValueError(str(error)) from error
    title = _words(soup.title.get_text()) if soup.title else ""
    root = _main_part(soup)
    for tag in root.find_all(DROPPED):
        tag.decompose()
    headings = root.find_all(HEADINGS)
    _mark(root, headings)
    sections = _sections(root.get_text(), headings)
    named = next((section.title for section in sections if section.title), "")
    return Extract(title or named, sections)


def _main_part(soup: "BeautifulSoup") -> "Tag":
    for name in ("main", "article"):
        found = soup.find_all(name, limit=2)
        if len(found) == 1:
            return found[0]
    return soup.body or soup


def _mark(root: "Tag", headings: list[Any]) -> None:
    """Put marks into the tree, so that its plain text shows where blocks, lines and headings begin and end."""
    from bs4 import CData, NavigableString

    for string in root.find_all(string=True):
        if type(string) not in (NavigableString, CData):  # a comment or a declaration
            continue
        clean = _MARKS.sub(" ", string)
        preformatted = string.find_parent("pre") is not None
        if preformatted or clean != string:
            string.replace_with(clean.replace("\n", LINE_END) if preformatted else clean)
    for line_break in root.find_all("br"):
        line_break.replace_with(LINE_END)
    for block in root.find_all(BLOCKS):
        block.insert_before(BLOCK)
        block.insert_after(BLOCK)
    for heading in headings:
        heading.insert_before(HEADING)
        heading.insert_after(HEADING_END)


def _sections(marked: str, headings: list[Any]) -> list[Section]:
    """The sections of a marked text. A heading without text below it belongs to the next section."""
    before, *rest = marked.split(HEADING)
    found = [Section("", text, 1)] if (text := _plain(before)) else []
    waiting: list[str] = []
    line = 0
    for heading, part in zip(headings, rest, strict=True):
        name, _, body = part.partition(HEADING_END)
        line = line or int(heading.get(LINE_ATTRIBUTE) or heading.sourceline or 1)
        waiting += [words] if (words := _words(_MARKS.sub(" ", name))) else []
        if text := _plain(body):
            found.append(Section(waiting[-1] if waiting else "", "\n".join([*waiting, text]), line))
            waiting, line = [], 0
    if waiting:
        found.append(Section(waiting[-1], "\n".join(waiting), line))
    return found


def _plain(marked: str) -> str:
    """The text between two headings: one line for each block, spaces as in a browser."""
    marked = marked.replace(HEADING_END, BLOCK)
    blocks = ("\n".join(map(_words, block.split(LINE_END))).strip() for block in marked.split(BLOCK))
    return "\n".join(filter(None, blocks))


def _words(text: str) -> str:
    return " ".join(text.split())
