"""What systems are compared on: a corpus's documents, its labelled queries, and each system's cut of the documents.

Document rows are the same in every store of a corpus, whatever the tokenizer: rankings of different systems can be
fused and compared.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.evaluation.labelled_queries import LabelledQueries
from dream.indexes.base import Index
from dream.indexes.snapshot import IndexHandle
from dream.store.build import open_or_build_passages
from dream.store.store import Store
from dream.utils.atomic_io import fingerprint
from dream.utils.errors import require

WORDS_OF_A_PASSAGE = 128


class Benchmark:
    """A corpus with labels, its stores and its embeddings below `data`.

    `passage_tokens` and `passages_per_document` of None leave both to the system; else every dense system gets
    passages that were cut like that.
    """

    def __init__(
        self, corpus: Corpus, data: Path, passage_tokens: int | None, passages_per_document: int | None
    ) -> None:
        for name, value in (("passage_tokens", passage_tokens), ("passages_per_document", passages_per_document)):
            require(value is None or value > 0, name, value, "at least 1, or null")
        self.corpus, self.data = corpus, data
        self.passage_tokens, self.passages_per_document = passage_tokens, passages_per_document
        self._splits: dict[tuple[str, str], LabelledQueries] = {}

    def store(self, encoder: Encoder, passage_tokens: int, own: Store | None = None) -> Store:
        """The documents cut with the encoder's tokenizer: `own`, its training's store, where that is of them."""
        if own is not None and self.takes(own):
            return own
        length = min(self.passage_tokens or passage_tokens, encoder.max_tokens)
        return self._cut(encoder.tokenizer, length)

    def takes(self, own: Store) -> bool:
        """Whether a run's store holds just these documents, row by row, and nobody wants them cut otherwise."""
        ours, theirs = [self.corpus.fingerprint(), self.corpus.deduplicate], own.manifest
        same = fingerprint(ours) == fingerprint([theirs["corpus"], theirs["deduplicate"]])
        return same and self.passage_tokens is None and self.passages_per_document is None

    def store_of_words(self) -> Store:
        """The documents cut by words, for systems that need no tokenizer."""
        words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        words.pre_tokenizer = Whitespace()
        return self._cut(PreTrainedTokenizerFast(tokenizer_object=words), WORDS_OF_A_PASSAGE)

    def _cut(self, tokenizer: Any, passage_tokens: int) -> Store:
        return open_or_build_passages(
            self.data / "stores",
            self.corpus,
            tokenizer,
            passage_tokens=passage_tokens,
            passages_per_document=self.passages_per_document,
        )

    def labelled(self, store: Store, split: str) -> LabelledQueries:
        """The queries of a split, for rankings that are made through this store."""
        key = (store.hash, split)
        if key not in self._splits:
            self._splits[key] = LabelledQueries(self.corpus, store, split)
        return self._splits[key]

    def embedded(
        self, encoder: Encoder, store: Store, index: Index, batch_passages: int, rows_per_shard: int
    ) -> IndexHandle:
        """The index over the store's embeddings, kept under weights, settings and store; begun ones go on."""
        folder = self.data / "embeddings" / f"{store.path.name}-{encoder.identity()}"
        handle = IndexHandle(index, folder, rows_per_shard)
        device = next(encoder.parameters()).device
        handle.refresh(encoder, store, 0, device, batch_passages)
        return handle
