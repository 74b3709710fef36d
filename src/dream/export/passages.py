"""The passages of a run's corpus with their vectors, for the formats of vector stores."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from dream.export.base import Job
from dream.export.check import cosines, sample
from dream.indexes.snapshot import IndexSnapshot
from dream.runs.load import FinishedRun
from dream.utils.errors import DataError
from dream.utils.runtime import progress

EXACT, MIXED = 0.99999, 0.999  # lowest cosine: the index keeps float16; with mixed precision, products are rounded, too
ROWS = 4096  # passages in memory
README = """# {passages:,} passages of corpus {corpus} and their vectors

Written by DREAM. {files}

Vectors have unit length, so the inner product is the cosine. Queries need the vectors of the same run:
`dream-export to=sentence_transformers` writes its encoder.

```python
{snippet}
```
"""


def about(job: Job, files: str, snippet: str) -> bytes:
    """Content of README.md."""
    passages = len(job.run.store.passages)
    text = README.format(passages=passages, corpus=job.config["corpus"]["name"], files=files, snippet=snippet)
    return text.encode()


def passage_rows(run: FinishedRun) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
    """(rows, vectors_BD float32) of a few thousand passages at a time, in the order of the index.

    A row has the passage's number, the document's id and title, the text, and its position in the document in
    characters.
    """
    store = run.store
    for start in progress(range(0, len(store.passages), ROWS), desc="exporting passages", leave=False):
        numbers = np.arange(start, min(start + ROWS, len(store.passages)))
        yield [passage_row(run, int(number)) for number in numbers], _snapshot(run).rows(numbers)


def passage_row(run: FinishedRun, number: int) -> dict[str, Any]:
    """One row of `passage_rows`."""
    store, row = run.store, run.store.passages[number]
    document = int(row["document"])
    start, end = map(int, row["characters"])
    return {"passage": number, "document": store.document_names[document], "title": store.titles[document],
            "text": store.passage_text(number), "start": start, "end": end}  # fmt: skip


def check_passages(job: Job, read: Callable[[np.ndarray], tuple[list[dict[str, Any]], np.ndarray]]) -> dict[str, Any]:
    """Compare some passages with the store, and their vectors with the run's encoder.

    Args:
        job: the run.
        read: returns (rows, vectors) of these passages from the written files.

    Raises:
        DataError: a row or a vector differs.
    """
    run = job.run
    numbers = sample(len(run.store.passages), job.checks.texts)
    rows, vectors_BD = read(numbers)
    if rows != [passage_row(run, int(number)) for number in numbers]:
        raise DataError("the export has other passages than the run; nothing was written")
    own_BD = run.encoder.embed_passages(run.store, numbers, "cpu").detach().float().numpy()
    lowest = float(cosines(own_BD, vectors_BD).min())
    precision = OmegaConf.select(run.cfg, "trainer.precision", default="32-true")
    least = EXACT if precision == "32-true" else MIXED
    if not lowest >= least:
        raise DataError(f"the export has other vectors than the run: cosine {lowest:.7f} instead of at least "
                        f"{least}; nothing was written")  # fmt: skip
    texts_BD = run.encoder.embed_texts([row["text"] for row in rows], "passage").float().numpy()
    # A piece of a document may begin with another token than the same text by itself.
    return {"passages": len(run.store.passages), "texts": len(rows), "lowest_cosine": lowest,
            "lowest_cosine_of_single_texts": float(cosines(texts_BD, vectors_BD).min())}  # fmt: skip


def _snapshot(run: FinishedRun) -> IndexSnapshot:
    assert run.index.current is not None
    return run.index.current
