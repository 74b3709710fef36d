"""Opens the systems of an evaluation, and ranks the labelled queries with each of them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate

from dream.corpora.base import Corpus
from dream.encoders.base import Encoder
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.fusion import Normalisation, hybrid, mix_top, replace_top, tune_weight, weighted_sum
from dream.evaluation.metrics import Ranking, reciprocal_rank_fusion
from dream.evaluation.reranking import LanguageModelRanker, open_ranker
from dream.evaluation.settings import EvaluationSettings
from dream.evaluation.system_names import FUSIONS, OF_A_RUN, Reranked, dense_part, reranked, untuned
from dream.indexes.bm25 import BM25Index
from dream.indexes.snapshot import IndexHandle, IndexSnapshot
from dream.runs.agreement import FIXED, changed_keys
from dream.runs.config_file import without_secrets
from dream.runs.layout import CONFIG, ENCODER
from dream.runs.load import hybrid_weight, open_config, open_encoder, open_store
from dream.store.store import Store
from dream.utils.errors import DreamError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

TRAINED_BY = (*FIXED, "optimizer", "trainer.max_steps", "corpus.name")  # equal in runs that differ only in the seed
Pairs = Callable[[str], list[tuple[Ranking, Ranking]]]  # split → for each run, the two rankings to fuse
Fuse = Callable[[Ranking, Ranking, float, Normalisation], Ranking]  # with the weight of the second ranking


def find_runs(run: str | Sequence[str]) -> list[Path]:
    """Folders of finished runs. The folder of a sweep stands for the folders of its jobs."""
    found: list[Path] = []
    for named in [run] if isinstance(run, str) else run:
        folder = Path(named).expanduser()
        if (folder / CONFIG).exists() or not folder.is_dir():
            found.append(folder)
            continue
        jobs = sorted(path.parent for path in folder.glob(f"*/{CONFIG}") if (path.parent / ENCODER).is_dir())
        require(bool(jobs), "run", named, "neither a run nor a sweep with finished runs; train one with dream-train "
                "experiment=quickstart")  # fmt: skip
        found += jobs
    return found


def names_of_seeds(runs: Sequence[Path], trust: Sequence[str] = ()) -> list[str]:
    """Names of runs that differ only in the seed: `seed=0` and so on.

    Raises:
        ConfigError: the runs differ in more than the seed, or two have the same seed.
    """
    configs = [open_config(run, trust) for run in runs]
    for config in configs[1:]:
        for key, (first, other) in changed_keys(without_secrets(configs[0]), config, TRAINED_BY).items():
            require(key.split(".")[-1] == "seed", "run", [str(run) for run in runs], "runs that are compared as seeds "
                    f"differ in {key} ({first}, {other}); evaluate them one by one")  # fmt: skip
    seeds = [f"seed={config.get('seed')}" for config in configs]
    require(len(set(seeds)) == len(seeds), "run", [str(run) for run in runs], "two of the runs have the same seed; "
            "evaluate them one by one")  # fmt: skip
    return seeds


def open_benchmark(
    settings: EvaluationSettings, runs: Sequence[Path], corpus: Corpus | None = None
) -> tuple[Benchmark, str]:
    """The documents with their labels, and the split that is reported.

    Args:
        settings: settings of the evaluation.
        runs: folders of finished runs. At least one if `corpus` is None.
        corpus: the corpus to evaluate on; None: the first run's corpus.

    Raises:
        ConfigError: the corpus lacks a required split.
    """
    split = settings.split or "test"
    if corpus is None:
        config = open_config(runs[0], settings.trust, settings.data)
        corpus = instantiate(config.corpus)
        split = settings.split or config.evaluation.report_split
    splits, dev = corpus.splits(), settings.dev_split
    require(split in splits, "split", split, f"corpus {corpus.name} has "
            f"{'the splits ' + ', '.join(splits) if splits else 'no labels'}")  # fmt: skip
    for system in settings.tuned[:1]:
        require(dev in splits, "systems", system, f"its weight is tuned on the split dev_split={dev}, but corpus "
                f"{corpus.name} only has {', '.join(splits)}; use {untuned(system)} instead")  # fmt: skip
        require(dev != split, "systems", system, f"its weight is tuned on split {dev}, so that it cannot be reported "
                "on it; choose another split=")  # fmt: skip
    limits = settings.passage_tokens, settings.passages_per_document, settings.max_queries
    return Benchmark(corpus, settings.data, *limits), split


@dataclass
class Member:
    """One encoder of a dense system.

    Attributes:
        encoder: the encoder, in eval mode, on the evaluation's device.
        store: the store that it searches.
        snapshot: folder with the embeddings of this store, if they exist already.
    """

    encoder: Encoder
    store: Store
    snapshot: Path | None = None


class Systems:
    """Ranks the labelled queries by each system. A system of a run has one ranking for each run, others have one.

    Encoders are opened one after another, and only their rankings are kept in memory, and the last language model.

    Args:
        settings: settings of the evaluation.
        runs: folders of finished runs. May be empty if no system belongs to a run.
        benchmark: the documents and their labels.

    Attributes:
        seconds: time spent on each system so far.
        remarks: notes for the report, e.g. the tuned weight.
    """

    def __init__(self, settings: EvaluationSettings, runs: Sequence[Path], benchmark: Benchmark) -> None:
        self.settings, self.runs, self.benchmark = settings, runs, benchmark
        self.device = settings.torch_device
        self.store = self._own_store(runs[0]) if runs else None
        self.is_own_corpus = self.store is not None
        self.seconds: dict[str, float] = {}
        self.remarks: list[str] = []
        self._kept: dict[tuple[str, str], list[Ranking]] = {}
        self._ranker: tuple[str | None, LanguageModelRanker] | None = None  # the last one, with its model

    @property
    def reference(self) -> Store:
        """The store that BM25 reads and that gives document names: the first run's, if it has the same documents."""
        if self.store is None:
            self.store = self.benchmark.store_of_words()
        return self.store

    def rankings(self, system: str, split: str) -> list[Ranking]:
        """The system's rankings of the split's queries, one for each run."""
        began = time.perf_counter()
        ranked = self._ranked(system, split)
        self.seconds[system] = self.seconds.get(system, 0.0) + time.perf_counter() - began
        return ranked

    def _ranked(self, system: str, split: str) -> list[Ranking]:
        kind, dense = system.partition(":")[0], dense_part(system)
        if lm := reranked(system):
            if lm.weighted:
                return self._weighted(system, lambda name: self._by_lm(lm, name), mix_top, split)
            return [replace_top(first, top) for first, top in self._by_lm(lm, split)]
        if dense is None:
            return [self._bm25(split)]
        if kind not in FUSIONS:
            return self._dense(system, split)
        pairs = lambda name: [(self._bm25(name), one) for one in self._dense(dense, name)]  # noqa: E731
        if kind == "hybrid" and dense not in OF_A_RUN:  # how good is it beside BM25? Ranks need no weight
            return [reciprocal_rank_fusion(pair) for pair in pairs(split)]
        if kind == "hybrid":
            return [hybrid(*pair, weight) for pair, weight in zip(pairs(split), self._weights(dense), strict=True)]
        return self._weighted(system, pairs, weighted_sum, split)

    def _bm25(self, split: str) -> Ranking:
        key = ("bm25", split)
        if key not in self._kept:
            index = BM25Index.open_or_build(self.reference, self.settings.bm25_unit)
            self._kept[key] = [self.benchmark.labelled(self.reference, split).by_bm25(index)]
        return self._kept[key][0]

    def _dense(self, system: str, split: str) -> list[Ranking]:
        """Rank by a dense system. If its fusion is tuned, also rank the dev split while the encoder is open."""
        if (system, split) not in self._kept:
            tuned = any(dense_part(name) == system for name in self.settings.tuned)
            splits = [split, self.settings.dev_split] if tuned else [split]
            for name in splits:
                self._kept[system, name] = []
            for member in self._members(system):
                handle = self._embedded(member)
                for name in splits:
                    labelled = self.benchmark.labelled(member.store, name)
                    self._kept[system, name].append(labelled.by_encoder(member.encoder, handle))
        return self._kept[system, split]

    def _by_lm(self, lm: Reranked, split: str) -> list[tuple[Ranking, Ranking]]:
        """For each ranking of the first system: the ranking, and its first documents ordered by the language model."""
        if self._ranker is None or self._ranker[0] != lm.model:
            self._ranker = None  # frees the memory of the last one
            self._ranker = (lm.model, open_ranker(lm.model, self.settings, self.runs, self.benchmark))
        queries, k = self.benchmark.labelled(self.reference, split).queries, self.settings.lm.k
        return [(first, self._ranker[1].rank(queries, first, k)) for first in self._ranked(lm.first, split)]

    def _weighted(self, system: str, pairs: Pairs, fuse: Fuse, split: str) -> list[Ranking]:
        """Fuse pairs of rankings of a split, each with the weight that is best for the same pair of the dev split."""
        fusion, dev, metric = self.settings.fusion, self.settings.dev_split, self.settings.metric
        judgements = self.benchmark.labelled(self.reference, dev).judgements
        fused = []
        for on_split, on_dev in zip(pairs(split), pairs(dev), strict=True):
            of_weight = lambda weight, pair=on_dev: fuse(pair[0], pair[1], weight, fusion.normalisation)  # noqa: E731
            weight, mean = tune_weight(of_weight, judgements, metric, fusion.step)
            whose = "the language model's scores" if reranked(system) else "the dense scores"
            self._remark(f"{system}: weight {weight:.2f} on {whose}, tuned on {len(judgements):,} queries of split "
                         f"{dev} ({metric} {mean:.4f} there)")  # fmt: skip
            fused.append(fuse(on_split[0], on_split[1], weight, fusion.normalisation))
        return fused

    def _weights(self, dense: str) -> list[float | None]:
        """For each run: the weight of its encoder's scores that it has chosen for this corpus. None: it has not."""
        chosen = dense == "run" and self.is_own_corpus
        weights = [hybrid_weight(run) if chosen else None for run in self.runs]
        if any(weight is not None for weight in weights):
            shown = ", ".join(str(weight) for weight in weights)
            self._remark(f"hybrid: weight {shown} on the dense scores, chosen on held-out questions in training")
        return weights

    def _remark(self, text: str) -> None:
        """Add a remark once: another system may rank this one again."""
        if text not in self.remarks:
            self.remarks.append(text)

    def _members(self, system: str) -> Iterator[Member]:
        kind, _, name = system.partition(":")
        if system in OF_A_RUN:
            for run in self.runs:
                yield self._of_run(run, OF_A_RUN[system])
        else:
            log.info(f"Opening the model {system}")
            encoder = self.settings.published[kind](name).eval().to(self.device)
            yield Member(encoder, self.benchmark.store(encoder, encoder.max_tokens))

    def _of_run(self, run: Path, name: str) -> Member:
        config, encoder = open_encoder(run, self.device, name, self.settings.trust, self.settings.data)
        encoder = encoder.to(self.settings.dtype)
        passage_tokens = config.data.passage_tokens
        try:
            snapshot, own = open_store(run, config, self.settings.data)
        except DreamError as error:
            log.info(f"Embedding the corpus for this evaluation, because the run has no usable embeddings: {error}")
            return Member(encoder, self.benchmark.store(encoder, passage_tokens))
        store = self.benchmark.store(encoder, passage_tokens, own)
        fits = store is own and IndexSnapshot(snapshot).encoder_fingerprint == encoder.fingerprint()
        return Member(encoder, store, snapshot if fits else None)

    def _own_store(self, run: Path) -> Store | None:
        try:
            own = open_store(run, open_config(run, self.settings.trust, self.settings.data), self.settings.data)[1]
        except DreamError:  # reported when the run's encoder is opened
            return None
        return Store(own.path, self.benchmark.language) if self.benchmark.takes(own) else None

    def _embedded(self, member: Member) -> IndexHandle:
        index, embedding = self.settings.index, self.settings.embedding
        if member.snapshot is not None:
            handle = IndexHandle(index, member.snapshot.parent)
            handle.open(member.snapshot, member.store, member.encoder.width)
            return handle
        return self.benchmark.embedded(
            member.encoder, member.store, index, embedding.batch_passages, embedding.rows_per_shard
        )
