"""The data that systems are compared on: a corpus, its labelled queries, and the stores that systems search.

A document has the same row in every store of a corpus, because rows do not depend on the tokenizer. Rankings of
different systems can therefore be fused and compared.
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

WORDS_OF_A_PASSAGE = 128  # for systems without a tokenizer


class Benchmark:
    """A corpus with labels. Its stores and embeddings are in the folder `data`.

    Args:
        corpus: a corpus with labels.
        data: folder of stores and embeddings. Missing ones are built.
        passage_tokens: tokens of a passage, for all dense systems; None: each system's own length.
        passages_per_document: passages kept of each document, from its beginning; None: all.
        max_queries: maximum number of queries of a split, drawn at random; None: all.
    """

    def __init__(
        self,
        corpus: Corpus,
        data: Path,
        passage_tokens: int | None,
        passages_per_document: int | None,
        max_queries: int | None = None,
    ) -> None:
        self.corpus, self.data, self.max_queries = corpus, data, max_queries
        self.language: str | None = getattr(corpus, "language", None)  # an own corpus need not have one
        self.passage_tokens, self.passages_per_document = passage_tokens, passages_per_document
        self._labelled: dict[tuple[str, str], LabelledQueries] = {}

    def store(self, encoder: Encoder, passage_tokens: int, own: Store | None = None) -> Store:
        """The documents cut with the encoder's tokenizer.

        Args:
            encoder: an encoder with its tokenizer.
            passage_tokens: the system's own length of a passage. The benchmark's length has priority.
            own: the store of the encoder's training. It is returned if it has the same documents and the same cut.
        """
        if own is not None and self.takes(own):
            return own
        length = min(self.passage_tokens or passage_tokens, encoder.max_tokens)
        return self.cut(encoder.tokenizer, length)

    def takes(self, own: Store) -> bool:
        """Whether a run's store can be searched: it has the same documents, and no other cut is requested."""
        wanted, manifest = [self.corpus.fingerprint(), self.corpus.deduplicate], own.manifest
        same = fingerprint(wanted) == fingerprint([manifest["corpus"], manifest["deduplicate"]])
        return same and self.passage_tokens is None and self.passages_per_document is None

    def store_of_words(self) -> Store:
        """The documents cut by words, for systems without a tokenizer."""
        words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        words.pre_tokenizer = Whitespace()
        return self.cut(PreTrainedTokenizerFast(tokenizer_object=words), WORDS_OF_A_PASSAGE)

    def cut(self, tokenizer: Any, passage_tokens: int) -> Store:
        """The documents cut into passages of at most `passage_tokens` tokens of this tokenizer."""
        return open_or_build_passages(
            self.data / "stores",
            self.corpus,
            tokenizer,
            passage_tokens=passage_tokens,
            passages_per_document=self.passages_per_document,
        )

    def labelled(self, store: Store, split: str) -> LabelledQueries:
        """The labelled queries of a split, for rankings of this store's documents."""
        key = (store.hash, split)
        if key not in self._labelled:
            self._labelled[key] = LabelledQueries(self.corpus, store, split, self.max_queries)
        return self._labelled[key]

    def embedded(
        self, encoder: Encoder, store: Store, index: Index, batch_passages: int, rows_per_shard: int
    ) -> IndexHandle:
        """The index over the store's embeddings. If embedding was interrupted, it is resumed.

        Args:
            encoder: an encoder on the device that embeds.
            store: a store cut with the encoder's tokenizer.
            index: an empty index. A copy of it is built.
            batch_passages: passages embedded at a time.
            rows_per_shard: passages between two files.
        """
        # The name depends on store, weights and settings, so embeddings of different encoders are never mixed.
        folder = self.data / "embeddings" / f"{store.path.name}-{encoder.identity()}"
        handle = IndexHandle(index, folder, rows_per_shard)
        device = next(encoder.parameters()).device
        handle.refresh(encoder, store, 0, device, batch_passages)
        return handle
