"""The settings of an evaluation. Wrong values raise an error before any file is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dream.encoders.base import Encoder
from dream.encoders.sentence_transformer import import_sentence_transformers
from dream.evaluation.fusion import NORMALISATIONS, Normalisation
from dream.evaluation.metrics import METRICS
from dream.evaluation.statistics import Sampling
from dream.evaluation.system_names import ALLOWED, OF_A_RUN, dense_part, is_tuned, reranked
from dream.indexes.base import Index
from dream.indexes.bm25 import Unit
from dream.scorers.base import CausalScorer
from dream.utils.errors import ConfigError, require, require_count


@dataclass(frozen=True)
class WeightedFusion:
    """How `hybrid_weighted` fuses BM25 and a dense system.

    Args:
        normalisation: how the scores of both rankings are normalised, for each query.
        step: difference between the weights that are tried, above 0, at most 1.
    """

    normalisation: Normalisation
    step: float

    def __post_init__(self) -> None:
        key, chosen = "hybrid_weighted.normalisation", self.normalisation
        require(chosen in NORMALISATIONS, key, chosen, f"choose {' or '.join(NORMALISATIONS)}")
        require(0 < self.step <= 1, "hybrid_weighted.step", self.step, "above 0, at most 1")


@dataclass(frozen=True)
class Embedding:
    """How a corpus is embedded.

    Args:
        batch_passages: passages embedded at a time.
        rows_per_shard: passages of a file. An interruption loses at most the work of one file.
    """

    batch_passages: int
    rows_per_shard: int

    def __post_init__(self) -> None:
        require(self.batch_passages > 0, "embedding.batch_passages", self.batch_passages, "at least 1")
        require(self.rows_per_shard > 0, "embedding.rows_per_shard", self.rows_per_shard, "at least 1")


@dataclass(frozen=True)
class LanguageModels:
    """How systems `lm…` rank: section `lm` of conf/evaluate.yaml.

    Args:
        k: documents of the first ranking that are ranked again.
        open: opens a language model by its name, without its weights; None: the model of the section.
        named: whether the section names a model. Otherwise, `lm` is the run's scorer.
        scoring: fields of `Scoring`, which replace those of the run's scorer.
    """

    k: int
    open: Callable[[str | None], CausalScorer]
    named: bool
    scoring: Mapping[str, object]

    def __post_init__(self) -> None:
        require(isinstance(self.k, int) and self.k >= 2, "lm.k", self.k, "at least 2 documents")


@dataclass(frozen=True)
class EvaluationSettings:
    """The systems to compare, and how to compare them. The keys of conf/evaluate.yaml have the same names.

    Args:
        systems: names of the systems, see `system_names.ALLOWED`.
        baseline: the system that the others are compared with; one of `systems`.
        metric: metric of intervals, differences, tuning and plots.
        split: split of the queries; None: the split that the run reports on, or test.
        dev_split: the split that `hybrid_weighted` is tuned on.
        data: folder of stores, embeddings and other caches.
        device: torch's name of the device that encoders run on; auto: cuda if it is available, otherwise cpu.
        run_dtype: name of the torch type of the runs' weights.
        passage_tokens: tokens of a passage; None: the length that the system was trained or published with.
        passages_per_document: search only this number of passages of a document, the first ones; None: all.
        max_queries: maximum number of queries of a split; None: all.
        bm25_unit: what BM25 ranks, documents or passages.
        fusion: settings of `hybrid_weighted` and `lm_weighted`.
        sampling: settings of intervals and tests.
        index: an empty index; each system builds its own copy.
        embedding: how corpora are embedded.
        published: opens a published model by its name, for each kind of `system_names.PUBLISHED`.
        lm: how systems `lm…` rank.
        trust: packages, besides dream, whose classes a run's config may name.

    Raises:
        ConfigError: a value is not allowed.
    """

    systems: tuple[str, ...]
    baseline: str
    metric: str
    split: str | None
    dev_split: str
    data: Path
    device: str
    run_dtype: str
    passage_tokens: int | None
    passages_per_document: int | None
    max_queries: int | None
    bm25_unit: Unit
    fusion: WeightedFusion
    sampling: Sampling
    index: Index
    embedding: Embedding
    published: Mapping[str, Callable[[str], Encoder]]
    lm: LanguageModels
    trust: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = list(self.systems)
        require(bool(names), "systems", names, f"name at least one of {', '.join(ALLOWED)}")
        require(len(set(names)) == len(names), "systems", names, "names a system twice; remove one of them")
        for name in names:
            dense = dense_part(name) or ""
            if dense.startswith("st:"):
                import_sentence_transformers(dense)
        require(self.baseline in names, "baseline", self.baseline, f"not one of systems={names}; choose one of them")
        require(self.metric in METRICS, "metric", self.metric, f"choose from {', '.join(METRICS)}")
        require(self.bm25_unit in ("passage", "document"), "bm25.unit", self.bm25_unit, "choose passage or document")
        dtype = getattr(torch, self.run_dtype, None)
        is_float = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        require(is_float, "run_dtype", self.run_dtype, "not a torch type of floats; choose e.g. float32 or bfloat16")
        for key in ("passage_tokens", "passages_per_document", "max_queries"):
            require_count(key, getattr(self, key))
        _refuse_unusable_device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of the runs' weights."""
        return getattr(torch, self.run_dtype)

    @property
    def torch_device(self) -> torch.device:
        """The device that encoders run on."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)

    @property
    def tuned(self) -> list[str]:
        """The systems that have a weight to tune."""
        return [name for name in self.systems if is_tuned(name)]

    @property
    def names_a_run(self) -> bool:
        """Whether a system belongs to a run."""
        scorers = [lm for lm in map(reranked, self.systems) if lm and lm.model is None and not self.lm.named]
        return bool(scorers) or any(dense_part(name) in OF_A_RUN for name in self.systems)


def _refuse_unusable_device(name: str) -> None:
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("device", name, "no such device; choose auto, cpu or cuda") from error
    usable = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
    require(usable, "device", name, "this machine has no such GPU that torch can use; choose auto or cpu")
