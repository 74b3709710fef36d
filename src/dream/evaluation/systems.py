"""Systems by name: what `systems=[...]` may hold, and the documents that each ranks for the labelled queries."""

import difflib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from dream.encoders.base import Encoder
from dream.encoders.sentence_transformer import SentenceTransformerEncoder, import_sentence_transformers
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.fusion import tune_weight, weighted_sum
from dream.evaluation.metrics import METRICS, Ranking, reciprocal_rank_fusion
from dream.indexes.bm25 import BM25Index
from dream.indexes.snapshot import IndexHandle, IndexSnapshot
from dream.runs.layout import UNTRAINED_ENCODER
from dream.runs.load import open_config, open_encoder, open_store
from dream.store.store import Store
from dream.utils.errors import ConfigError, DreamError, require
from dream.utils.logging import get_logger

log = get_logger(__name__)

OF_A_RUN = {"run": "encoder", "untrained": UNTRAINED_ENCODER}  # system → folder of the run
FUSIONS = ("hybrid", "hybrid_weighted")
PUBLISHED = ("st", "hf")
ALLOWED = ("bm25", *OF_A_RUN, *FUSIONS, "st:NAME", "hf:NAME", "hybrid:SYSTEM", "hybrid_weighted:SYSTEM")


def dense_part(system: str) -> str | None:
    """The dense system that a name stands for or fuses with BM25; None for BM25 itself. ConfigError for no system."""
    kind, _, rest = system.partition(":")
    if kind in FUSIONS:
        part = dense_part(rest) if rest else "run"
        require(part is not None and not rest.startswith(FUSIONS), "systems", system, "fuses BM25 with a dense system")
        return part
    if kind in PUBLISHED and rest:
        return system
    if system in OF_A_RUN:
        return system
    if system != "bm25":
        close = difflib.get_close_matches(system, ALLOWED, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError("systems", system, f"no such system; {hint}choose from {', '.join(ALLOWED)}")
    return None


def short_names(systems: list[str]) -> dict[str, str]:
    """What the tables call each system: of a path the last two parts, where that is enough to tell them apart."""
    short = {system: re.sub(r":[^:]*/([^/:]+/[^/:]+)/?$", r":\1", system) for system in systems}
    return short if len(set(short.values())) == len(systems) else {system: system for system in systems}


def find_runs(run: str | ListConfig) -> list[Path]:
    """Folders of finished runs: those that are named, and for a sweep's folder those in it."""
    found: list[Path] = []
    for named in [run] if isinstance(run, str) else list(run):
        folder = Path(named).expanduser()
        if (folder / "config.yaml").exists() or not folder.is_dir():
            found.append(folder)
            continue
        jobs = sorted(path.parent for path in folder.glob("*/config.yaml") if (path.parent / "encoder").is_dir())
        require(bool(jobs), "run", named, "neither a run nor a sweep with finished runs; train one with dream-train "
                "experiment=quickstart")  # fmt: skip
        found += jobs
    return found


@dataclass
class Member:
    """One encoder of a dense system, with what it searches in; `snapshot` holds its embeddings already."""

    encoder: Encoder
    store: Store
    snapshot: Path | None = None


class Systems:
    """Ranks the queries of the splits that are asked for. A system has one ranking for each run, or just one.

    Encoders are opened one after another, and only their rankings are kept.
    """

    def __init__(self, cfg: DictConfig, runs: list[Path], benchmark: Benchmark) -> None:
        self.cfg, self.runs, self.benchmark = cfg, runs, benchmark
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
        )
        self.store = self._own_store(runs[0]) if runs else None
        self.seconds: dict[str, float] = {}
        self.remarks: list[str] = []
        self._kept: dict[tuple[str, str], list[Ranking]] = {}

    @property
    def reference(self) -> Store:
        """The store that names the documents and that BM25 reads: the first run's where it is of them."""
        if self.store is None:
            self.store = self.benchmark.store_of_words()
        return self.store

    def rankings(self, system: str, split: str) -> list[Ranking]:
        """The system's rankings of the split's queries, one for each run."""
        began = time.perf_counter()
        kind, dense = system.partition(":")[0], dense_part(system)
        if dense is None:
            ranked = [self._bm25(split)]
        elif kind not in FUSIONS:
            ranked = self._dense(system, split)
        elif kind == "hybrid":
            ranked = [reciprocal_rank_fusion([self._bm25(split), one]) for one in self._dense(dense, split)]
        else:
            ranked = self._weighted(system, dense, split)
        self.seconds[system] = self.seconds.get(system, 0.0) + time.perf_counter() - began
        return ranked

    def _bm25(self, split: str) -> Ranking:
        key = ("bm25", split)
        if key not in self._kept:
            index = BM25Index.open_or_build(self.reference, self.cfg.bm25.unit)
            self._kept[key] = [self.benchmark.labelled(self.reference, split).by_bm25(index)]
        return self._kept[key][0]

    def _dense(self, system: str, split: str) -> list[Ranking]:
        """Where a fusion is tuned, the dev split's queries are ranked while the encoder is there."""
        if (system, split) not in self._kept:
            tuned = any(name.startswith("hybrid_weighted") and dense_part(name) == system for name in self.cfg.systems)
            splits = [split, self.cfg.dev_split] if tuned else [split]
            for name in splits:
                self._kept[system, name] = []
            for member in self._members(system):
                handle = self._embedded(member)
                for name in splits:
                    labelled = self.benchmark.labelled(member.store, name)
                    self._kept[system, name].append(labelled.by_encoder(member.encoder, handle))
        return self._kept[system, split]

    def _weighted(self, system: str, dense: str, split: str) -> list[Ranking]:
        settings, dev = self.cfg.hybrid_weighted, self.cfg.dev_split
        judgements = self.benchmark.labelled(self.reference, dev).judgements
        fused = []
        for on_split, on_dev in zip(self._dense(dense, split), self._dense(dense, dev), strict=True):
            fuse = lambda weight, ranking=on_dev: weighted_sum(  # noqa: E731
                self._bm25(dev), ranking, weight, settings.normalisation
            )
            weight, mean = tune_weight(fuse, judgements, self.cfg.metric, settings.step)
            self.remarks.append(f"{system}: weight {weight:.2f} on the dense scores, tuned on {len(judgements):,} "
                                f"queries of split {dev} ({self.cfg.metric} {mean:.4f} there)")  # fmt: skip
            fused.append(weighted_sum(self._bm25(split), on_split, weight, settings.normalisation))
        return fused

    def _members(self, system: str) -> Iterator[Member]:
        kind, _, name = system.partition(":")
        if system in OF_A_RUN:
            for run in self.runs:
                yield self._of_run(run, OF_A_RUN[system])
        else:
            made: Any = _published_sentence_transformer if kind == "st" else _published_hf
            encoder = made(self.cfg, name).eval().to(self.device)
            yield Member(encoder, self.benchmark.store(encoder, encoder.max_tokens))

    def _of_run(self, run: Path, name: str) -> Member:
        cfg, encoder = open_encoder(run, self.device, name)
        encoder = encoder.to(getattr(torch, self.cfg.run_dtype))
        try:
            snapshot, own = open_store(run, cfg)
        except DreamError:  # its caches are gone; its encoder can still embed the documents anew
            return Member(encoder, self.benchmark.store(encoder, cfg.data.passage_tokens))
        store = self.benchmark.store(encoder, cfg.data.passage_tokens, own)
        fits = store is own and IndexSnapshot(snapshot).encoder_fingerprint == encoder.fingerprint()
        return Member(encoder, store, snapshot if fits else None)

    def _own_store(self, run: Path) -> Store | None:
        try:
            own = open_store(run, open_config(run))[1]
        except DreamError:
            return None
        return own if self.benchmark.takes(own) else None

    def _embedded(self, member: Member) -> IndexHandle:
        index = instantiate(self.cfg.index)
        if member.snapshot is not None:
            handle = IndexHandle(index, member.snapshot.parent)
            handle.open(member.snapshot, member.store, member.encoder.width)
            return handle
        settings = self.cfg.embedding
        return self.benchmark.embedded(
            member.encoder, member.store, index, settings.batch_passages, settings.rows_per_shard
        )


def _published_sentence_transformer(cfg: DictConfig, name: str) -> Encoder:
    log.info(f"Opening the sentence-transformers model {name}")
    return SentenceTransformerEncoder(name, **cfg.st)


def _published_hf(cfg: DictConfig, name: str) -> Encoder:
    log.info(f"Opening the transformers model {name}")
    return instantiate(OmegaConf.merge(cfg.hf, {"name": name}))


def labels_of(runs: list[Path]) -> list[str]:
    """`seed=0` and so on; ConfigError where runs are no seeds of one another."""
    configs = [open_config(run) for run in runs]
    for key in ("corpus.name", "encoder._target_", "objective._target_"):
        chosen = {str(OmegaConf.select(config, key)) for config in configs}
        require(len(chosen) <= 1, "run", [str(run) for run in runs], f"runs that are compared as seeds differ in {key} "
                f"({', '.join(sorted(chosen))}); evaluate them one by one")  # fmt: skip
    seeds = [f"seed={config.get('seed')}" for config in configs]
    require(len(set(seeds)) == len(seeds), "run", [str(run) for run in runs], "two of the runs have the same seed; "
            "evaluate other runs one by one")  # fmt: skip
    return seeds


def needs_run(cfg: DictConfig) -> bool:
    """Whether a system, or the benchmark, is a run's."""
    return cfg.get("benchmark") is None or any(dense_part(str(name)) in OF_A_RUN for name in cfg.systems)


def open_benchmark(cfg: DictConfig, runs: list[Path]) -> tuple[Benchmark, str]:
    """The benchmark and the split that is reported: what the config says, else the first run's own."""
    own = cfg.get("benchmark") is None
    config = open_config(runs[0]) if own else cfg
    corpus = instantiate(config.corpus if own else cfg.benchmark)
    split = cfg.split or (config.evaluation.report_split if own else "test")
    splits = corpus.splits()
    require(split in splits, "split", split, f"corpus {corpus.name} has "
            f"{'the splits ' + ', '.join(splits) if splits else 'no labels'}")  # fmt: skip
    dev, tuned = cfg.dev_split, [name for name in cfg.systems if str(name).startswith("hybrid_weighted")]
    require(not tuned or dev in splits, "systems", "".join(tuned[:1]), f"its weight is tuned on the split "
            f"dev_split={dev}, and {corpus.name} has {', '.join(splits)}; take hybrid")  # fmt: skip
    require(not tuned or dev != split, "systems", "".join(tuned[:1]), f"its weight is tuned on split {dev}, so that "
            "it cannot be reported on it; take another split=")  # fmt: skip
    return Benchmark(corpus, Path(cfg.paths.data), cfg.passage_tokens, cfg.passages_per_document), split


def check(cfg: DictConfig) -> None:
    """Refuse what can be refused before anything is opened."""
    names = list(cfg.systems)
    require(bool(names), "systems", names, f"name at least one of {', '.join(ALLOWED)}")
    require(len(set(names)) == len(names), "systems", names, "a system stands there twice")
    for name in names:
        dense = dense_part(str(name)) or ""
        if dense.startswith("st:"):
            import_sentence_transformers(dense)
    require(cfg.baseline in names, "baseline", cfg.baseline, f"is none of systems={names}")
    dtype = getattr(torch, cfg.run_dtype, None)
    floats = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    require(floats, "run_dtype", cfg.run_dtype, "a torch type of floats, e.g. float32 or bfloat16")
    require(cfg.metric in METRICS, "metric", cfg.metric, f"choose from {', '.join(METRICS)}")
    require(cfg.bm25.unit in ("passage", "document"), "bm25.unit", cfg.bm25.unit, "choose passage or document")
    allowed = cfg.hybrid_weighted.normalisation
    require(allowed in ("minmax", "zscore"), "hybrid_weighted.normalisation", allowed, "choose minmax or zscore")
    require(0 < cfg.hybrid_weighted.step <= 1, "hybrid_weighted.step", cfg.hybrid_weighted.step, "above 0, at most 1")
    require(0 < cfg.statistics.confidence < 1, "statistics.confidence", cfg.statistics.confidence, "between 0 and 1")
    require(cfg.statistics.resamples > 0, "statistics.resamples", cfg.statistics.resamples, "at least 1")
