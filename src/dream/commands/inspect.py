"""dream-inspect: reads a corpus before training, and estimates how long the training takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

if TYPE_CHECKING:
    from dream.store.store import Store

log = get_logger(__name__)

ABOUT = """
dream-inspect reads a corpus before training: lengths, copies, languages, refused documents, windows with candidates,
and an estimate of time and memory. Nothing is trained. It takes the same options as dream-train.

  dream-inspect experiment=own_corpus corpus.path=my.jsonl
  dream-inspect experiment=own_corpus corpus=folder corpus.path=my_wiki probe_steps=0
"""
KEYS = (
    "near_copy",
    "sampled_documents",
    "windows",
    "shown_candidates",
    "probe_steps",
)
COUNTS = ("documents_read", "empty", "duplicates", "refused", "documents", "near_copies", "documents_without_window",
          "passages", "windows")  # fmt: skip
SNIPPET_CHARACTERS = 96
MOST_SHARES = 6  # scripts and languages in the table


def inspect(cfg: DictConfig) -> dict[str, Any]:
    """Write and show the report of a corpus. Returns it as JSON values."""
    with fast_imports():
        from dream.build import build_text, check_config
    from dream.evaluation.corpus_report import describe, windows_with_candidates
    from dream.utils.atomic_io import write_json
    from dream.utils.errors import require

    check_config(cfg)
    for key in ("sampled_documents", "windows", "shown_candidates"):
        require(isinstance(cfg[key], int) and cfg[key] > 0, key, cfg[key], "at least 1")
    steps = cfg.probe_steps
    require(
        isinstance(steps, int) and steps >= 0, "probe_steps", steps, "a number of training steps, or 0 for no estimate"
    )
    log.info(_first_screen(cfg))
    text = build_text(cfg)
    store = text.store
    report: dict[str, Any] = {"corpus": text.corpus.name, "store": str(store.path)}
    report |= describe(store, cfg.near_copy, cfg.sampled_documents)
    stream = text.data.stream(0, 1)
    report["examples"] = windows_with_candidates(store, _first_windows(stream, cfg.windows), cfg.shown_candidates)
    folder = Path(cfg.output) / store.path.name
    folder.mkdir(parents=True, exist_ok=True)
    _show(report)
    write_json(folder / "report.json", report)
    if cfg.probe_steps:
        from dream.commands.estimate import estimate, sentence

        log.info(f"\nTiming {cfg.probe_steps} training steps")
        report["estimate"] = estimate(cfg, text, cfg.probe_steps)
        log.info(sentence(report["estimate"]))
    write_json(folder / "report.json", report)
    _plot(store, text.corpus.name, report, folder)
    log.info(f"\nWritten to {folder}: report.json, document_lengths.png, windows_per_document.png")
    return report


def _first_screen(cfg: DictConfig) -> str:
    steps = f"4. time {cfg.probe_steps} training steps" if cfg.probe_steps else "4. no estimate (probe_steps=0)"
    return (f"DREAM: inspecting corpus {cfg.corpus.name}; nothing is trained\n"
            "  1. read it, and cut it into passages and windows; dream-train uses this store, too\n"
            "  2. look for copies, scripts and languages\n"
            f"  3. show {cfg.windows} windows with their BM25 candidates\n  {steps}")  # fmt: skip


def _first_windows(stream: Any, count: int) -> Any:
    """Ids of the first windows that a training reads, in its order and without repetitions."""
    import numpy as np

    ids = stream.windows_at(np.arange(4 * count))
    return ids[np.sort(np.unique(ids, return_index=True)[1])][:count]


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    counts = Table("documents and their parts", "count", box=None)
    for name in COUNTS:
        counts.add_row(name.replace("_", " "), f"{report['counts'][name]:,}")
    for reason, count in report["refused"].items():
        counts.add_row(f"  refused: {escape(reason)}", f"{count:,}")
    lengths = Table("of a document", *report["tokens_per_document"], box=None)
    for name in ("tokens_per_document", "passages_per_document", "windows_per_document"):
        values = report[name].values()
        lengths.add_row(name.partition("_")[0], *(f"{value:,.0f}" for value in values))
    console.print(counts, "", lengths, "")
    console.print(f"scripts of {report['sampled_documents']:,} documents: {_shares(report['scripts'])}")
    if report["languages"] is None:
        console.print("languages: not determined; pip install 'dream-retrieval\\[languages]'")
    else:
        console.print(f"languages: {_shares(report['languages'])}")
    for number, window in enumerate(report["examples"], start=1):
        context, continuation = (escape(_short(window[part])) for part in ("context", "continuation"))
        console.print(f"\n[bold]window {number}[/bold] of {escape(window['document'])}: {context} "
                      f"[dim]→ {continuation}[/dim]")  # fmt: skip
        for found in window["candidates"]:
            console.print(f"  {found['score']:6.2f}  {escape(found['document'])}: {escape(_short(found['text']))}")
        if not window["candidates"]:
            console.print("  no passage of another document shares a word with the context")


def _shares(shares: dict[str, float]) -> str:
    named = [f"{name} {share:.1%}" for name, share in list(shares.items())[:MOST_SHARES]]
    return ", ".join(named) + (f", {len(shares) - MOST_SHARES} others" if len(shares) > MOST_SHARES else "")


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SNIPPET_CHARACTERS else f"{words[:SNIPPET_CHARACTERS]}…"


def _plot(store: "Store", name: str, report: dict[str, Any], folder: Path) -> None:
    from dream.evaluation.corpus_plots import histogram, save
    from dream.evaluation.corpus_report import document_tokens, windows_per_document

    longest = store.manifest["lengths"][0]
    plots = {
        "document_lengths.png": histogram(
            document_tokens(store), "encoder tokens of a document", f"Lengths of the documents of corpus {name}",
            {"median": report["tokens_per_document"]["median"], "a passage": longest},
        ),
        "windows_per_document.png": histogram(
            windows_per_document(store), "windows of a document", f"Windows of the documents of corpus {name}",
            {"mean": report["windows_per_document"]["mean"]},
        ),
    }  # fmt: skip
    for file, figure in plots.items():
        save(figure, folder / file)


main = command("inspect", ABOUT, KEYS)(inspect)

if __name__ == "__main__":
    main()
