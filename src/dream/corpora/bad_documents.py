"""Handles documents that cannot be used. Only this file knows the values of `corpus.on_bad_document`."""

import json
from collections import Counter
from typing import TextIO

from dream.utils.errors import DataError, require

POLICIES = ("error", "skip")
MOST_LISTED = 10_000  # entries in the list of bad documents; the counts include all
MOST_CHARACTERS = 300  # quoted from a bad document


class BadDocument(DataError):
    """One document that cannot be used.

    Args:
        file: Its file, or "" if unknown.
        line: Its line in the file, from 1. For Parquet, its row; for a JSON array, the number of the element.
        reason: A few words, used to count bad documents by kind.
        detail: What is wrong, and how to fix it. Cut after 300 characters.
    """

    def __init__(self, file: str, line: int, reason: str, detail: str) -> None:
        self.file, self.line, self.reason = file, line, reason
        self.detail = detail if len(detail) <= MOST_CHARACTERS else f"{detail[:MOST_CHARACTERS]} ..."
        super().__init__(f"{file}:{line}: {self.detail}" if file else self.detail)


class BadDocumentPolicy:
    """Handles all bad documents of one pass over a corpus.

    Errors that concern a whole file, such as a damaged gzip file or a bad file of labels, stop the run under both
    policies. This class does not handle them.

    Args:
        policy: `error` stops at the first bad document; `skip` counts them, lists them and continues.
        listing: With `skip`, an open text file that gets one JSON object for each bad document.

    Example:
        >>> policy = BadDocumentPolicy("skip")
        >>> texts = [document.text for document in corpus.documents(policy.handle)]
        >>> policy.counts
        Counter({'not JSON': 2})
    """

    def __init__(self, policy: str, listing: TextIO | None = None) -> None:
        require(policy in POLICIES, "corpus.on_bad_document", policy, f"choose {' or '.join(POLICIES)}")
        self.policy, self.listing = policy, listing
        self.counts: Counter[str] = Counter()
        self.first: BadDocument | None = None

    def handle(self, bad: BadDocument) -> None:
        """Count and list one bad document.

        Raises:
            DataError: The policy is `error`.
        """
        if self.policy == "error":
            raise DataError(f"{bad}; fix or remove it, or leave out every bad one with corpus.on_bad_document=skip")
        self.first = self.first or bad
        self.counts[bad.reason] += 1
        if self.listing and self.counts.total() <= MOST_LISTED:
            entry = {"file": bad.file, "line": bad.line, "reason": bad.reason, "detail": bad.detail}
            self.listing.write(json.dumps(entry) + "\n")


def by_reason(counts: dict[str, int]) -> str:
    """For messages: "12 not JSON, 3 not UTF-8"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))
