"""What all extractors return."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Section:
    """The text of one heading, or of one page of a PDF.

    Args:
        title: The heading; empty for text before the first heading.
        text: The heading and the text below it.
        line: Line of the heading in the file, from 1; for a PDF, the page.
    """

    title: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Extract:
    """The text of a file.

    Args:
        title: Title of the file; empty if it has none.
        sections: Sections with text, in their order in the file.
    """

    title: str
    sections: list[Section]
