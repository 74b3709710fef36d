"""Writes the files of an evaluation: tables, run files, metrics of single queries, plots, TensorBoard."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from dream.evaluation import plots
from dream.evaluation.labelled_queries import LabelledQueries
from dream.evaluation.metrics import METRICS, Ranking
from dream.evaluation.results import Results
from dream.utils.atomic_io import write_bytes, write_json

EMPTY = "%00"  # an empty id in a run file
BLANK = re.compile(r"\s")
BLANKS = [chr(code) for code in range(0x3001) if chr(code).isspace()]  # all of Unicode's
ENCODED = re.compile("|".join([*map(quote, BLANKS), quote("%"), EMPTY]))  # what `column` writes for a character


def write_results(folder: Path, results: Results, title: str, about: Mapping[str, object]) -> None:
    """Write results.json, results.md and the plots, and the same to TensorBoard.

    Args:
        folder: folder of the evaluation.
        results: results of all systems.
        title: title of tables and plots.
        about: further facts for results.json.
    """
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
    """Write one run file for each of the system's rankings. If there are several, `runs` names them."""
    for number, ranking in enumerate(rankings):
        row = f"{system} {runs[number]}" if len(rankings) > 1 else system
        write_run_file(folder / f"{file_name(row)}.run", row, ranking, labelled)


def write_run_file(file: Path, system: str, ranking: Ranking, labelled: LabelledQueries) -> None:
    """Write a ranking in TREC's run format: query, Q0, document, rank, score, system.

    TREC's tools sort only by score, as float32, and break ties by document id. Each score is therefore written at least
    one float32 step below the previous one. So all tools read the same ranking. Blanks in ids are percent-encoded, see
    `column`.
    """
    tag = "_".join(system.split())
    lines = []
    for query, rows, scores in zip(labelled.judgements.query_ids, ranking.rows_QR, ranking.score_QR, strict=True):
        found = rows >= 0
        for rank, (row, score) in enumerate(zip(rows[found], strictly_falling(scores[found]), strict=True), start=1):
            document = column(labelled.store.document_names[int(row)])
            lines.append(f"{column(query)} Q0 {document} {rank} {float(score):.9g} {tag}\n")
    write_bytes(file, "".join(lines).encode())


def strictly_falling(scores: np.ndarray) -> np.ndarray:
    """The scores as float32, each at least one float32 step below the previous one."""
    falling = scores.astype(np.float32)
    for at in range(1, len(falling)):
        falling[at] = min(falling[at], np.nextafter(falling[at - 1], np.float32(-np.inf)))
    return falling


def file_name(system: str) -> str:
    """The system's name, with "_" for characters that file systems may refuse."""
    return re.sub(r"[^\w.=-]+", "_", system)


def column(name: str) -> str:
    """An id as one column of a run file, whose columns are separated by blanks. Different ids stay different.

    In an id with a blank (any white space), blanks and "%" are percent-encoded, e.g. "a b" → "a%20b". An id that
    already contains the code of a blank or of "%" is also encoded, to keep ids different: "a%20b" → "a%2520b". An empty
    id becomes "%00". All other ids are unchanged, e.g. "100%" and "caf%C3%A9".
    """
    if not name:
        return EMPTY
    if not BLANK.search(name) and not ENCODED.search(name):
        return name
    return re.sub(r"[%\s]", lambda character: quote(character[0]), name)


def write_per_query(file: Path, results: Results, query_ids: Sequence[str]) -> None:
    """Write one line with a JSON object for each system, run and query."""
    write_bytes(file, "".join(_per_query_lines(results, query_ids)).encode())


def _per_query_lines(results: Results, query_ids: Sequence[str]) -> Iterator[str]:
    for row, values in results.rows.items():
        if len(values[results.metric]) > 1:
            continue  # this row is for all runs; each single run also has a row
        for q, query in enumerate(query_ids):
            scores = {metric: round(float(values[metric][0, q]), 9) for metric in METRICS}
            yield json.dumps({"system": row, "query": query, **scores}, ensure_ascii=False) + "\n"
