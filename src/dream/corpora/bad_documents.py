"""What happens to a document that cannot be used: the one place that knows `corpus.on_bad_document`."""

import json
from collections import Counter
from typing import TextIO

from dream.utils.errors import DataError, require

POLICIES = ("error", "skip")
MOST_LISTED = 10_000  # entries of the list; all are counted
MOST_CHARACTERS = 300  # of what is quoted of a bad document


class BadDocument(DataError):
    """One document that cannot be used, with its file and line, where known.

    `reason` is a word to count by, `detail` says more.
    """

    def __init__(self, file: str, line: int, reason: str, detail: str) -> None:
        self.file, self.line, self.reason = file, line, reason
        self.detail = detail if len(detail) <= MOST_CHARACTERS else f"{detail[:MOST_CHARACTERS]} ..."
        super().__init__(f"{file}:{line}: {self.detail}" if file else self.detail)


class BadDocumentPolicy:
    """Takes every bad document of one reading: `error` stops at the first, `skip` counts and lists them.

    What is no document of its own, such as a damaged gzip file or a file of labels, is an error under both.
    """

    def __init__(self, policy: str, listing: TextIO | None = None) -> None:
        require(policy in POLICIES, "corpus.on_bad_document", policy, f"choose {' or '.join(POLICIES)}")
        self.policy, self.listing = policy, listing
        self.counts: Counter[str] = Counter()
        self.first: BadDocument | None = None

    def refuse(self, bad: BadDocument) -> None:
        if self.policy == "error":
            raise DataError(f"{bad}; mend or remove it, or leave out every bad one with corpus.on_bad_document=skip")
        self.first = self.first or bad
        self.counts[bad.reason] += 1
        if self.listing and self.counts.total() <= MOST_LISTED:
            entry = {"file": bad.file, "line": bad.line, "reason": bad.reason, "detail": bad.detail}
            self.listing.write(json.dumps(entry) + "\n")


def by_reason(counts: dict[str, int]) -> str:
    """For the terminal: "12 not JSON, 3 not UTF-8"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))
