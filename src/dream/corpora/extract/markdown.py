"""Extracts text from Markdown: markdown-it renders it as HTML, of which the text is taken."""

import re

from dream.corpora.extract.html import LINE_ATTRIBUTE, extract_html
from dream.corpora.extract.sections import Extract

FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?\n)(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)  # YAML before the text
TITLE = re.compile(r"^title:[ \t]*(['\"]?)(.+?)\1[ \t]*$", re.MULTILINE)


def extract_markdown(text: str) -> Extract:
    """The text of a Markdown file without its markup, cut at headings. `title:` of the front matter is the title."""
    from markdown_it import MarkdownIt

    title = ""
    if front := FRONT_MATTER.match(text):
        named = TITLE.search(front[1])
        title = named[2] if named else ""
        text = "\n" * front[0].count("\n") + text[front.end() :]  # lines keep their numbers
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type == "heading_open" and token.map:
            token.attrSet(LINE_ATTRIBUTE, str(token.map[0] + 1))
    found = extract_html(parser.renderer.render(tokens, parser.options, {}))
    return Extract(title or found.title, found.sections)
