"""Counts near copies of a document as one document: in the judgements, and in rankings.

Shape suffixes: Q labelled queries, R ranks, N documents.
"""

from dataclasses import replace

import numpy as np

from dream.evaluation.metrics import Judgements, Ranking
from dream.indexes.near_copies import LEAST, find_groups
from dream.store.store import Store
from dream.utils.errors import require


class CopiesAsOne:
    """Replaces each document by the first document of its group of near copies.

    A group is relevant with the highest grade of its documents. A ranking keeps the first document of each group, so it
    can have fewer than 100 documents.

    Args:
        store: the store of the documents.
        near_copy: lowest Jaccard similarity of near copies.

    Raises:
        ConfigError: `near_copy` is out of its range.
    """

    def __init__(self, store: Store, near_copy: float) -> None:
        require(LEAST <= near_copy <= 1, "near_copy", near_copy, f"choose null, or a similarity from {LEAST} to 1")
        self.group_N = find_groups(store, "document", near_copy)

    def judgements(self, judgements: Judgements) -> Judgements:
        grades: list[dict[int, int]] = []
        for graded in judgements.grades:
            merged: dict[int, int] = {}
            for row, grade in graded.items():
                group = int(self.group_N[row])
                merged[group] = max(grade, merged.get(group, 0))
            grades.append(merged)
        return replace(judgements, grades=grades)

    def ranking(self, ranking: Ranking) -> Ranking:
        merged = Ranking.empty(*ranking.rows_QR.shape)
        for q, rows in enumerate(ranking.rows_QR):
            groups = self.group_N[rows[rows >= 0]]
            first = np.sort(np.unique(groups, return_index=True)[1])
            merged.rows_QR[q, : len(first)] = groups[first]
            merged.score_QR[q, : len(first)] = ranking.score_QR[q, first]
        return merged

    def note(self) -> str:
        """What the table shows, with the number of near copies."""
        copies, documents = len(self.group_N) - len(np.unique(self.group_N)), len(self.group_N)
        return (f"Near copies count as one document: {copies:,} of {documents:,} documents are near copies of another "
                "one. A ranking keeps the first of them; it is relevant if one of them is.")  # fmt: skip
