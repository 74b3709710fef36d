"""dream-evaluate: compares retrievers on labelled queries, with intervals and tests."""

from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger

log = get_logger(__name__)

ABOUT = """
dream-evaluate compares retrievers on labelled queries, with intervals and tests.

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
    "passage_tokens",
    "passages_per_document",
    "statistics.resamples",
)


def evaluate(cfg: DictConfig) -> float:
    """Rank, score, tell. Returns `metric` of the last system, for sweeps. A mistake leaves no empty folder behind."""
    folder = Path(cfg.paths.run)
    try:
        return _evaluate(cfg, folder)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _evaluate(cfg: DictConfig, folder: Path) -> float:
    from dream.evaluation import outputs, systems
    from dream.evaluation.metrics import per_query_metrics
    from dream.evaluation.results import Results, notes_of, rows_of
    from dream.evaluation.statistics import Sampling
    from dream.runs.config_file import save_config

    systems.check(cfg)
    runs = systems.find_runs(cfg.run) if systems.needs_run(cfg) else []
    names_of_runs = systems.labels_of(runs)
    benchmark, split = systems.open_benchmark(cfg, runs)
    field = systems.Systems(cfg, runs, benchmark)
    labelled = benchmark.labelled(field.reference, split)
    judgements, counts = labelled.judgements, labelled.store.manifest["counts"]
    corpus, documents = benchmark.corpus.name, counts["documents"]
    title = f"{len(labelled):,} queries of split {split} of corpus {corpus}, {documents:,} documents"
    log.info(f"DREAM: evaluating {', '.join(cfg.systems)} on {title}")

    names = systems.short_names(list(cfg.systems))
    values = {}
    for system, name in names.items():
        rankings = field.rankings(system, split)
        outputs.write_run_files(folder / "runs", name, rankings, names_of_runs, labelled)
        values[name] = [per_query_metrics(ranking, judgements) for ranking in rankings]
    sampling = Sampling(cfg.statistics.resamples, cfg.statistics.confidence, cfg.statistics.seed)
    notes = [*notes_of(judgements, counts, sampling, cfg.metric), *field.remarks]
    results = Results.of(rows_of(values, names_of_runs), cfg.metric, names[cfg.baseline], sampling, notes)
    about = {"corpus": corpus, "split": split, "queries": len(labelled), "documents": documents,
             "runs": [str(run.resolve()) for run in runs], "names": names, "seconds": field.seconds}  # fmt: skip
    outputs.write_per_query(folder / "per_query.jsonl", results, judgements.query_ids)
    outputs.write_results(folder, results, title, about)
    save_config(cfg, folder / "evaluation.yaml")
    _show(results, title, folder)
    return results.mean(list(names.values())[-1], cfg.metric)


def _show(results, title: str, folder) -> None:
    from rich.console import Console

    console = Console() if Console().is_terminal else Console(width=160)
    for table in results.tables(title):
        console.print(table)
    for note in results.notes:
        log.info(f"- {note}")
    log.info(f"\nTables, run files, single queries and plots: {folder}")


main = command("evaluate", ABOUT, KEYS)(evaluate)

if __name__ == "__main__":
    main()
