"""dream-evaluate: compares retrievers on labelled queries, with confidence intervals and significance tests."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

if TYPE_CHECKING:
    from dream.corpora.base import Corpus
    from dream.encoders.base import Encoder
    from dream.evaluation.results import Results
    from dream.evaluation.settings import EvaluationSettings, LanguageModels
    from dream.scorers.base import CausalScorer

log = get_logger(__name__)

ABOUT = """
dream-evaluate compares retrievers on labelled queries, with confidence intervals and significance tests.

  dream-evaluate                     the last run; run=<a sweep's folder>: all its seeds
  dream-evaluate corpus=beir corpus.path=DIR 'systems=[bm25,run,hybrid,"st:NAME_OR_PATH"]'
"""
KEYS = (
    "run",
    "systems",
    "baseline",
    "split",
    "dev_split",
    "metric",
    "device",
    "trust",
    "deduplicate",
    "passage_tokens",
    "passages_per_document",
    "near_copy",
    "max_queries",
    "windows",
    "lm.k",
    "statistics.resamples",
)
PIPED_WIDTH = 160  # characters of the tables if the output is not a terminal


def evaluate(cfg: DictConfig) -> float:
    """Rank, score, write and print. Returns `metric` of the last system, for sweeps.

    If it fails before the first file is written, it removes the empty folder.
    """
    folder = Path(cfg.paths.run)
    try:
        return _evaluate(cfg, folder)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _evaluate(cfg: DictConfig, folder: Path) -> float:
    with fast_imports():
        from dream.evaluation import outputs, systems
    from dream.evaluation.metrics import per_query_metrics
    from dream.evaluation.near_copies import CopiesAsOne
    from dream.evaluation.results import Results, notes_of, rows_of, way_to_teacher
    from dream.evaluation.system_names import short_names, teachers_of
    from dream.runs.config_file import save_config

    settings = settings_of(cfg)
    corpus = _other_corpus(cfg)
    run = cfg.run if isinstance(cfg.run, str) else list(cfg.run)
    runs = systems.find_runs(run) if corpus is None or settings.names_a_run else []
    if cfg.windows is not None:
        return _evaluate_on_windows(cfg, settings, runs, corpus)
    seeds = systems.names_of_seeds(runs, settings.trust)
    benchmark, split = systems.open_benchmark(settings, runs, corpus)
    compared = systems.Systems(settings, runs, benchmark)
    labelled = benchmark.labelled(compared.reference, split)
    judgements, counts = labelled.judgements, labelled.store.manifest["counts"]
    name, documents = benchmark.corpus.name, counts["documents"]
    drawn = "" if len(labelled) == labelled.drawn_from else f" (drawn from {labelled.drawn_from:,})"
    title = f"{len(labelled):,} queries{drawn} of split {split} of corpus {name}, {documents:,} documents"
    log.info(f"DREAM: evaluating {', '.join(settings.systems)} on {title}")

    names = short_names(settings.systems)
    copies = None if cfg.near_copy is None else CopiesAsOne(compared.reference, cfg.near_copy)
    values, values_once = {}, {}
    for system, row in names.items():
        rankings = compared.rankings(system, split)
        outputs.write_run_files(folder / "runs", row, rankings, seeds, labelled)
        values[row] = [per_query_metrics(ranking, judgements) for ranking in rankings]
        if copies is not None:
            merged = copies.judgements(judgements)
            values_once[row] = [per_query_metrics(copies.ranking(ranking), merged) for ranking in rankings]
    metric, sampling = settings.metric, settings.sampling
    notes = [*notes_of(judgements, counts, sampling, metric), *compared.remarks]
    results = Results.of(rows_of(values, seeds), metric, names[settings.baseline], sampling, notes)
    students = [row for row in results.rows if row.split(" seed=")[0] == names.get("run")]
    results.notes += way_to_teacher(results, students, [names[lm] for lm in teachers_of(settings.systems)], "bm25")
    about = {"corpus": name, "split": split, "queries": len(labelled), "documents": documents,
             "runs": [str(run.resolve()) for run in runs], "names": names, "seconds": compared.seconds}  # fmt: skip
    outputs.write_per_query(folder / "per_query.jsonl", results, judgements.query_ids)
    save_config(cfg, folder / "evaluation.yaml")
    _write_and_show(results, title, folder, about)
    if copies is not None:
        rows, baseline = rows_of(values_once, seeds), names[settings.baseline]
        once = Results.of(rows, metric, baseline, sampling, [copies.note()])
        _write_and_show(once, f"{title}; near copies count as one document", folder / "near_copies", about)
    return results.mean(names[settings.systems[-1]], metric)


def _write_and_show(results: "Results", title: str, folder: Path, about: dict[str, Any]) -> None:
    from dream.evaluation import outputs

    outputs.write_results(folder, results, title, about)
    _show(results, title, folder)


def _evaluate_on_windows(
    cfg: DictConfig, settings: "EvaluationSettings", runs: "list[Path]", corpus: "Corpus | None"
) -> float:
    """The same without labels: whether a language model finds the documents that sentences are taken from."""
    from dream.evaluation import held_out_windows, outputs
    from dream.runs.config_file import save_config

    folder = Path(cfg.paths.run)
    results, windows, about = held_out_windows.compare(settings, runs, corpus, cfg.windows)
    title = f"{about['windows']:,} sentences of corpus {about['corpus']}, {about['candidates']} passages each"
    outputs.write_per_query(folder / "per_query.jsonl", results, windows.judgements.query_ids)
    save_config(cfg, folder / "evaluation.yaml")
    _write_and_show(results, title, folder, about)
    return results.mean(list(results.rows)[-1], settings.metric)


def settings_of(cfg: DictConfig) -> "EvaluationSettings":
    """Read the settings from the command's config.

    Raises:
        ConfigError: a value is not allowed.
    """
    from hydra.utils import instantiate

    from dream.evaluation.settings import Embedding, EvaluationSettings, WeightedFusion
    from dream.evaluation.statistics import Sampling

    return EvaluationSettings(
        systems=(cfg.systems,) if isinstance(cfg.systems, str) else tuple(map(str, cfg.systems)),
        baseline=cfg.baseline,
        metric=cfg.metric,
        split=cfg.split,
        dev_split=cfg.dev_split,
        data=Path(cfg.paths.data),
        device=cfg.device,
        run_dtype=cfg.run_dtype,
        passage_tokens=cfg.passage_tokens,
        passages_per_document=cfg.passages_per_document,
        max_queries=cfg.max_queries,
        bm25_unit=cfg.bm25.unit,
        fusion=WeightedFusion(**cfg.hybrid_weighted),
        sampling=Sampling(**cfg.statistics),
        index=instantiate(cfg.index),
        embedding=Embedding(**cfg.embedding),
        published=_published(cfg),
        lm=_language_models(cfg),
        trust=tuple(cfg.trust),
    )


def _published(cfg: DictConfig) -> "dict[str, Callable[[str], Encoder]]":
    """Functions that open a published model by its name, with the settings of the config."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from dream.encoders.sentence_transformer import SentenceTransformerEncoder

    return {
        "st": lambda name: SentenceTransformerEncoder(name, **cfg.st),
        "hf": lambda name: instantiate(OmegaConf.merge(cfg.hf, {"name": name})),
    }


def _language_models(cfg: DictConfig) -> "LanguageModels":
    """The settings of systems `lm…`. All keys of section `lm` except k are those of a scorer."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from dream.evaluation.settings import LanguageModels

    scorer = OmegaConf.masked_copy(cfg.lm, [key for key in cfg.lm if key != "k"])

    def open_scorer(name: str | None) -> "CausalScorer":
        chosen = OmegaConf.merge(scorer, {"name": name}) if name else scorer
        return instantiate(chosen, corpus=None)

    return LanguageModels(cfg.lm.k, open_scorer, not OmegaConf.is_missing(scorer, "name"), dict(scorer.scoring))


def _other_corpus(cfg: DictConfig) -> "Corpus | None":
    """The corpus given on the command line; None: use the run's corpus. `deduplicate` replaces the corpus's own key.

    The replaced value is also written into `cfg`, so evaluation.yaml contains the value that was used.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate

    from dream.utils.errors import ConfigError

    if cfg.get("corpus") is None:
        return None
    given: Any = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    for override in given:
        key, _, value = override.lstrip("+").partition("=")
        if key == "corpus.deduplicate":
            raise ConfigError(key, value, f"dream-evaluate does not read this key; write deduplicate={value}")
    if "deduplicate" in cfg.corpus:
        cfg.corpus.deduplicate = cfg.deduplicate
    return instantiate(cfg.corpus)


def _show(results: "Results", title: str, folder: Path) -> None:
    from rich.console import Console

    from dream.utils.logging import log_table

    for table in results.tables(title):
        log_table(table, None if Console().is_terminal else PIPED_WIDTH)
    for note in results.notes:
        log.info(f"- {note}")
    log.info(f"\nTables, run files, single queries and plots: {folder}")


main = command("evaluate", ABOUT, KEYS)(evaluate)

if __name__ == "__main__":
    main()
