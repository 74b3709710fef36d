"""What a corpus will need, from a sample of its documents: nothing is read as a whole."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dream.corpora.base import Corpus, Document
from dream.store.cutting import BatchCutter
from dream.store.parallel import processes_for
from dream.store.tokens import BatchTokenizer

PIECES = 64  # places of the file from which a sample is taken
PIECE_BYTES = 64_000
DOCUMENT_BYTES = 320  # of memory, for the hashes of a document's text and id


@dataclass(frozen=True)
class StoreNeeds:
    """Estimates of a store.

    Attributes:
        passages: number of passages, copies included.
        store_bytes: size on disk.
        memory_bytes: memory that grows with the corpus, in preparing.
        seconds: time of preparing.
        token_rows: encoder token ids of some passages.
    """

    passages: int
    store_bytes: int
    memory_bytes: int
    seconds: float
    token_rows: list


def estimate(corpus: Corpus, tokenizers: Sequence[BatchTokenizer], lengths: Sequence[int], context: str) -> StoreNeeds:
    """Cut a sample of the corpus, and multiply. Texts that the store leaves out as copies are counted."""
    documents, share = sample(corpus)
    cutter = BatchCutter(tokenizers, lengths, context, None)
    cuts, seconds = [], 0.0
    for half in filter(None, (documents[::2], documents[1::2])):
        start = time.perf_counter()
        cuts.append(cutter(half))
        seconds = time.perf_counter() - start  # of the second half: the first words of a tokenizer take longer
    passages = sum(len(cut.passages) for cut in cuts)
    arrays = [array for cut in cuts for array in (cut.passages, cut.windows, *cut.ids)]
    strings = [len(encoded) + 8 * len(ends) for cut in cuts for encoded, ends in cut.strings.values()]
    return StoreNeeds(
        passages=round(passages / share),
        store_bytes=round((sum(strings) + sum(array.nbytes for array in arrays)) / share),
        memory_bytes=round(len(documents) / share * DOCUMENT_BYTES),
        seconds=len(cuts) * seconds / share / processes_for(corpus.size_bytes()),
        token_rows=[cuts[0].ids[0][start:end] for start, end in cuts[0].passages["tokens"][:512, 0]],
    )


def sample(corpus: Corpus) -> tuple[list[Document], float]:
    """(documents, their share of the corpus): from many places if the corpus has `sample`, otherwise the first ones."""
    if hasattr(corpus, "sample") and (found := corpus.sample(PIECES, PIECE_BYTES)):
        return found
    documents, size = [], 0
    for document in _with_text(corpus):
        documents.append(document)
        size += len(document.text.encode()) + len(document.id) + len(document.title)
        if size >= PIECES * PIECE_BYTES:
            break
    return documents, min(1.0, size / max(1, corpus.size_bytes()))


def _with_text(corpus: Corpus) -> Iterator[Document]:
    return (document for document in islice(corpus.documents(lambda bad: None), 1_000_000) if document.text.strip())
