"""A frozen language model ranks the first documents of another ranking again, by how well they predict the query.

score(document) = log p(query | passage of the document), in nats, summed over the query's tokens (Sachan et al. 2022,
UPR: https://arxiv.org/abs/2204.07496). The candidates of a query have the same target, so a mean over its tokens would
give the same order and, after the normalisation of a mixture, the same scores.

Shape suffixes: Q queries, R ranks (best first, padded with -1), P pairs of query and passage.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from dream.evaluation.benchmark import Benchmark
from dream.evaluation.fusion import ordered
from dream.evaluation.metrics import Ranking
from dream.evaluation.settings import EvaluationSettings
from dream.indexes.bm25 import BM25Index
from dream.runs.load import open_config, open_store
from dream.scorers.base import CausalScorer
from dream.scorers.loglik_cache import LoglikCache
from dream.scorers.pretraining.scratch import ScratchScorer
from dream.scorers.weights import attends_to
from dream.store.store import SCORER, Store
from dream.store.tokens import BatchTokenizer
from dream.utils.atomic_io import fingerprint
from dream.utils.errors import require
from dream.utils.logging import get_logger
from dream.utils.runtime import progress

log = get_logger(__name__)

PROMPT = ("template", "max_passage_tokens")  # keys of `scoring` that a scratch scorer was trained with
PAIRS_PER_CHUNK = 256  # pairs given to the scorer at once; an interruption loses the work of one chunk
PAIRS_PER_LOOKUP = 10_000  # pairs searched in the cache with one query of SQL
MOST_QUERY_TOKENS = 128  # longer queries are cut at their end


class LanguageModelRanker:
    """Ranks documents by a language model. Log-likelihoods are cached, so an interrupted evaluation is resumed.

    Args:
        scorer: the language model, with its weights loaded. Its template ends before the query.
        store: the documents, cut into passages with the scorer's tokenizer.

    Raises:
        ConfigError: passage and query do not fit into the positions of the model.
    """

    def __init__(self, scorer: CausalScorer, store: Store) -> None:
        self.scorer, self.store = scorer, store
        self._tokenize = BatchTokenizer(scorer.tokenizer)  # type: ignore[arg-type]
        longest = scorer.prompt.overhead() + scorer.scoring.max_passage_tokens + MOST_QUERY_TOKENS
        require(longest <= scorer.most_tokens, "lm.scoring.max_passage_tokens", scorer.scoring.max_passage_tokens,
                f"with template and query a sequence has up to {longest} tokens, but the model reads "
                f"{scorer.most_tokens}; lower it")  # fmt: skip
        if getattr(scorer, "packs", False) and not attends_to(scorer.model, longest):  # the store has shorter sequences
            scorer.packs = False
            scorer.to(scorer.device)

    def rank(self, queries: Sequence[str], first: Ranking, k: int) -> Ranking:
        """The first k documents of a ranking of these queries, ordered by log-likelihood. Ties keep their order.

        Of each document, the model reads the passage that BM25 finds best for the query: reading all passages would
        take as many times as long as a document has passages.
        """
        passages_QR = self.best_passages(queries, first.rows_QR[:, :k])
        return ordered(first.rows_QR[:, :k], self.loglik(queries, passages_QR))

    def best_passages(self, queries: Sequence[str], documents_QR: np.ndarray) -> np.ndarray:
        """passages_QR: the best passage of each document by BM25, or its first one; -1 for document -1."""
        index = BM25Index.open_or_build(self.store)
        passages_QR = np.full_like(documents_QR, -1)
        for q, query in enumerate(queries):
            scores_N = index.scores_of(query)
            for rank in np.flatnonzero(documents_QR[q] >= 0):
                first, end = self.store.passages_of(documents_QR[q, rank])
                passages_QR[q, rank] = first + scores_N[first:end].argmax()
        return passages_QR

    def loglik(self, queries: Sequence[str], passages_QR: np.ndarray) -> np.ndarray:
        """loglik_QR float32: log p(query | passage) in nats, summed over the query's tokens; -inf for passage -1."""
        targets = self._targets(queries)
        loglik_QR = np.full(passages_QR.shape, -np.inf, dtype=np.float32)
        query_P, rank_P = np.nonzero(passages_QR >= 0)
        loglik_QR[query_P, rank_P] = self._loglik(targets, query_P, passages_QR[query_P, rank_P])
        return loglik_QR

    def gain(self, query: str, documents_R: np.ndarray) -> np.ndarray:
        """gain_R float32: log p(query | passage) - log p(query | no passage), in nats per token of the query.

        The passage of each document is its best one by BM25.
        """
        passages_QR = self.best_passages([query], documents_R[None])
        (target,) = self._targets([query])
        alone = self.scorer.prompt.join(np.empty(0, dtype=np.int64), target)
        without = self.scorer.score_sequences([alone], [len(target)])[0]
        return (self.loglik([query], passages_QR)[0] - without) / max(len(target), 1)

    def _loglik(self, targets: list[np.ndarray], query_P: np.ndarray, passage_P: np.ndarray) -> np.ndarray:
        cache, key_P = self._open_cache(), np.array([_key(target) for target in targets], dtype=np.int64)[query_P]
        loglik_P = np.full(len(key_P), np.nan, dtype=np.float32)
        if cache:
            for start in range(0, len(key_P), PAIRS_PER_LOOKUP):
                known = slice(start, start + PAIRS_PER_LOOKUP)
                loglik_P[known] = cache.find(key_P[known], passage_P[known])
        new = np.flatnonzero(np.isnan(loglik_P))
        new = new[np.argsort(passage_P[new], kind="stable")]  # pairs with the same passage are scored together
        options = {"total": len(new), "unit": " pairs", "desc": "language model", "disable": not len(new)}
        with progress(leave=False, **options) as bar:
            for start in range(0, len(new), PAIRS_PER_CHUNK):
                pairs = new[start : start + PAIRS_PER_CHUNK]
                loglik_P[pairs] = self._score([targets[query] for query in query_P[pairs]], passage_P[pairs])
                if cache:
                    cache.add(key_P[pairs], passage_P[pairs], loglik_P[pairs])
                bar.update(len(pairs))
        if cache:
            cache.close()
        return loglik_P

    def _score(self, targets: list[np.ndarray], passage_P: np.ndarray) -> np.ndarray:
        texts = [self.store.passage_tokens(passage, SCORER) for passage in passage_P]
        cut = [tokens[: self.scorer.scoring.max_passage_tokens].astype(np.int64) for tokens in texts]
        sequences = [self.scorer.prompt.join(*pair) for pair in zip(cut, targets, strict=True)]
        lengths = [len(target) for target in targets]
        shared = [len(sequence) - length for sequence, length in zip(sequences, lengths, strict=True)]
        return self.scorer.score_sequences(sequences, lengths, shared=shared)

    def _targets(self, queries: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each query."""
        tokens = self._tokenize(list(queries))
        ranges = zip(tokens.bounds[:-1], tokens.bounds[1:], strict=True)
        return [tokens.ids_T[start:end][:MOST_QUERY_TOKENS].astype(np.int64) for start, end in ranges]

    def _open_cache(self) -> LoglikCache | None:
        if not self.scorer.cache_megabytes:
            return None
        cache = LoglikCache(self.store.cache_folder("loglik"), self.scorer.cache_megabytes)
        cache.open(fingerprint([self.scorer.fingerprint, self.store.hash, "queries"]))
        return cache


def open_ranker(
    model: str | None, settings: EvaluationSettings, runs: Sequence[Path], benchmark: Benchmark
) -> LanguageModelRanker:
    """Open a language model and the documents that it reads.

    Args:
        model: hub name or folder; None: the model of section `lm`, or if it names none, the scorer of the first run.
        settings: settings of the evaluation.
        runs: folders of finished runs; at least one if the run's scorer is meant.
        benchmark: the documents.

    Raises:
        ConfigError: the model cannot be loaded or cannot rank.
    """
    if model is None and not settings.lm.named:
        scorer, trained_on = scorer_of_run(runs[0], settings)
    else:
        log.info(f"Opening the language model {model or 'of section lm'}")
        scorer, trained_on = settings.lm.open(model), None
    store = benchmark.cut(scorer.tokenizer, scorer.scoring.max_passage_tokens)
    scorer.to(settings.torch_device).load(trained_on or store)  # type: ignore[attr-defined]  # of each subclass
    return LanguageModelRanker(scorer, store)


def scorer_of_run(run: Path, settings: EvaluationSettings) -> tuple[CausalScorer, Store]:
    """(the run's scorer without weights, the store that it was made for)

    A scratch scorer keeps the prompt that it was trained with, because it cannot read another one.
    """
    config = open_config(run, settings.trust, settings.data)
    _, store = open_store(run, config, settings.data)
    keeps = PROMPT if issubclass(get_class(config.scorer._target_), ScratchScorer) else ()
    scoring = {key: value for key, value in settings.lm.scoring.items() if key not in keeps}
    log.info(f"Opening the language model of {run}")
    scorer = OmegaConf.merge(config.scorer, {"scoring": scoring})
    return instantiate(scorer, corpus=instantiate(config.corpus)), store


def _key(tokens: np.ndarray) -> int:
    """The query's row in the cache: a hash of its token ids."""
    return int.from_bytes(hashlib.blake2b(tokens.tobytes(), digest_size=7).digest())
