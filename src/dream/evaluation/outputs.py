"""The files of an evaluation: tables, run files, single queries, plots, TensorBoard."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dream.evaluation import plots
from dream.evaluation.labelled_queries import LabelledQueries
from dream.evaluation.metrics import METRICS, Ranking
from dream.evaluation.results import Results
from dream.utils.atomic_io import write_bytes, write_json


def write_results(folder: Path, results: Results, title: str, about: Mapping[str, object]) -> None:
    """results.json, results.md, the plots, and the same in TensorBoard."""
    write_json(folder / "results.json", {**about, **results.as_json(), "flat": results.flat()})
    write_bytes(folder / "results.md", results.markdown(title).encode())
    drawn = {"systems": plots.bars(results, title), "gain_per_query": plots.gains(results, title)}
    for name, figure in drawn.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    _board(folder / "tensorboard", results, title, drawn)


def _board(folder: Path, results: Results, title: str, drawn: Mapping[str, plots.Figure]) -> None:
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as board:
        for name, value in results.flat().items():
            board.add_scalar(f"evaluation/{name}", value)
        board.add_text("evaluation", results.markdown(title))
        for name, figure in drawn.items():
            board.add_image(f"evaluation/{name}", plots.pixels(figure), dataformats="HWC")


def write_run_files(
    folder: Path, system: str, rankings: Sequence[Ranking], runs: Sequence[str], labelled: LabelledQueries
) -> None:
    """One file for each of the system's rankings; `runs` names them where there are several."""
    for number, ranking in enumerate(rankings):
        row = f"{system} {runs[number]}" if len(rankings) > 1 else system
        write_run_file(folder / f"{file_name(row)}.run", row, ranking, labelled)


def write_run_file(file: Path, system: str, ranking: Ranking, labelled: LabelledQueries) -> None:
    """TREC's run format: query, Q0, document, rank, score, system.

    TREC's tools sort by score alone, as float32, and break ties by document id. Each score is therefore written just
    below the one before it where they are equal, so that every tool reads the ranking that was scored here.
    """
    tag = _word(system)
    lines = []
    for query, rows, scores in zip(labelled.judgements.query_ids, ranking.rows_QR, ranking.score_QR, strict=True):
        found = rows >= 0
        for rank, (row, score) in enumerate(zip(rows[found], strictly_falling(scores[found]), strict=True), start=1):
            document = _word(labelled.store.document_names[int(row)])
            lines.append(f"{_word(query)} Q0 {document} {rank} {float(score):.9g} {tag}\n")
    write_bytes(file, "".join(lines).encode())


def strictly_falling(scores: np.ndarray) -> np.ndarray:
    """The scores as float32, each at least one step below the one before it."""
    falling = scores.astype(np.float32)
    for at in range(1, len(falling)):
        falling[at] = min(falling[at], np.nextafter(falling[at - 1], np.float32(-np.inf)))
    return falling


def file_name(system: str) -> str:
    """The system's name with what file systems dislike replaced."""
    return re.sub(r"[^\w.=-]+", "_", system)


def _word(name: str) -> str:
    """An id without white space, which separates the columns of a run file."""
    return "_".join(name.split()) or "_"


def write_per_query(file: Path, results: Results, query_ids: Sequence[str]) -> None:
    """One JSON object a line for each system, run and query."""
    write_bytes(file, "".join(_per_query_lines(results, query_ids)).encode())


def _per_query_lines(results: Results, query_ids: Sequence[str]) -> Iterator[str]:
    for row, values in results.rows.items():
        if len(values[results.metric]) > 1:
            continue  # the mean of rows that are there themselves
        for q, query in enumerate(query_ids):
            scores = {metric: round(float(values[metric][0, q]), 9) for metric in METRICS}
            yield json.dumps({"system": row, "query": query, **scores}, ensure_ascii=False) + "\n"
