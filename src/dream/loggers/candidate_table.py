"""A window and its candidates as a table for TensorBoard's text panel.

TensorBoard renders Markdown and HTML, but removes all attributes, so colours, widths and alignments are not possible.
Probabilities are therefore bars of block characters. They are in `<pre>`, because TensorBoard breaks all other text at
any character, even inside a number.
"""

from collections.abc import Collection
from dataclasses import dataclass
from html import escape

from dream.indexes.words import WORD, words

CHARACTERS = 200  # shown of a title and its text together: two lines of a wide window
LEAST_CHARACTERS = 100  # shown of the text, even if its title is long
ROWS = 4  # candidates shown for a window: one card of TensorBoard has space for four
NEAR_COPY = 0.8  # if two candidates share at least this fraction of their words, one is a near copy of the other
BAR = 16  # characters of a bar for probability 1
BLOCK = "▆"  # lower than a line: bars of two lines do not touch


@dataclass(frozen=True)
class Row:
    """One candidate of a window.

    Attributes:
        posterior: its probability under the LM posterior.
        retriever: its probability under the retriever.
        text: text of the passage; None if there is no passage.
        document: title of its document, or the text to show instead.
    """

    posterior: float
    retriever: float
    text: str | None
    document: str


@dataclass(frozen=True)
class Window:
    """A training window: two consecutive pieces of text, and the title of their document."""

    context: str
    target: str
    document: str


def candidate_table(heading: str, window: Window, candidates: Collection[Row]) -> str:
    """HTML: the heading, and a table of context, target and candidates.

    Content words of the target are bold in the candidates. Near copies of a candidate are only counted in its row.
    The retriever's best candidate is always in the table.

    Args:
        heading: the heading, which says why this window is shown.
        window: the window.
        candidates: the candidates, in any order.
    """
    shown = _without_copies(candidates)
    wanted = set(words(window.target))
    context = escape(_end(window.context, _room(window.document)))
    rows = [("context", _titled(window.document, context)), ("target", escape(_start(window.target, CHARACTERS)))]
    for row, copies in shown:
        bars = f"LM        {bar(row.posterior)}\nretriever {bar(row.retriever)}"
        title = row.document + (f" (and {copies} near {'copy' if copies == 1 else 'copies'})" if copies else "")
        text = "" if row.text is None else bold(excerpt(row.text, wanted, _room(title)), wanted)
        rows.append((bars, _titled(title, text)))
    body = "".join(f"<tr><td><pre>{label}</pre></td><td>{text}</td></tr>" for label, text in rows)
    note = f"{len(shown)} of {len(candidates)} candidates; words of the target are bold."
    return f"<p><strong>{escape(heading)}.</strong> {note}</p>\n<table><tbody>{body}</tbody></table>"


def alike(text: str, other: str, share: float) -> bool:
    """Whether two texts have at least this share of their content words in common."""
    text_words, other_words = set(words(text)), set(words(other))
    return len(text_words & other_words) >= share * len(text_words | other_words) > 0


def _without_copies(candidates: Collection[Row]) -> list[tuple[Row, int]]:
    """At most `ROWS` candidates, those with the highest posterior first, and the number of near copies of each."""
    favourite = max(candidates, key=lambda row: row.retriever)
    copies: dict[int, int] = {}
    ranked = sorted(candidates, key=lambda row: -row.posterior)
    for at, row in enumerate(ranked):
        original = next((i for i in copies if _is_copy(row, ranked[i])), None)
        if original is None or row is favourite:
            copies[at] = 0
        else:
            copies[original] += 1
    shown = [(ranked[at], count) for at, count in copies.items()]
    if all(row is not favourite for row, _ in shown[:ROWS]):
        shown[ROWS - 1] = next((row, count) for row, count in shown if row is favourite)
    return shown[:ROWS]


def _is_copy(row: Row, other: Row) -> bool:
    return row.text is not None and other.text is not None and alike(row.text, other.text, NEAR_COPY)


def bar(probability: float) -> str:
    """A bar and the number, of a fixed width.

    Example:
        >>> bar(0.5)
        '▆▆▆▆▆▆▆▆         .50'
    """
    number = f"{probability:.2f}"
    return f"{BLOCK * round(probability * BAR):<{BAR}} {number[1:] if number[0] == '0' else number[:3]}"


def excerpt(text: str, wanted: Collection[str], characters: int) -> str:
    """The part of a text with the most different wanted words, in one line. The start, if no other part has more."""
    text = one_line(text)
    if len(text) <= characters:
        return text
    found = [(match.start(), match.end(), match.group().lower()) for match in WORD.finditer(text)]
    found = [(start, end, word) for start, end, word in found if word in wanted]
    starts = [0, *(at + 1 for at, character in enumerate(text[:-characters]) if character == " ")]
    counts = [len({word for at, end, word in found if start <= at and end <= start + characters}) for start in starts]
    best = [start for start, count in zip(starts, counts, strict=True) if count == max(counts)]
    start = 0 if best[0] == 0 else best[len(best) // 2]
    part = _start(text[start:], characters)
    return part if start == 0 else f"… {part}"


def bold(text: str, marked: Collection[str]) -> str:
    """HTML of a text with these words in bold. `marked`: words as BM25 finds them, in lower case."""
    parts, end = [], 0
    for match in WORD.finditer(text):
        if match.group().lower() in marked:
            parts += [escape(text[end : match.start()]), f"<strong>{match.group()}</strong>"]
            end = match.end()
    return "".join([*parts, escape(text[end:])])


def one_line(text: str) -> str:
    return " ".join(text.split())


def _room(document: str) -> int:
    """Number of characters of a text that are shown after the title of its document."""
    return max(LEAST_CHARACTERS, CHARACTERS - len(document))


def _titled(document: str, text: str) -> str:
    return f"<em>{escape(document)}</em>: {text}" if text else f"<em>{escape(document)}</em>"


def _start(text: str, characters: int) -> str:
    """The first characters of a text, in one line, cut at the end of a word if possible."""
    text = one_line(text)
    return text if len(text) <= characters else text[: characters + 1].rsplit(" ", 1)[0][:characters] + " …"


def _end(text: str, characters: int) -> str:
    """The last characters of a text, in one line, cut at the start of a word if possible."""
    text = one_line(text)
    return text if len(text) <= characters else "… " + text[-characters - 1 :].split(" ", 1)[-1][-characters:]
