"""Tables, flat names, plots and run files of an evaluation. Run: pytest tests/evaluation/test_results.py"""

from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
from rich.console import Console

from dream.evaluation import plots
from dream.evaluation.metrics import METRICS, Judgements, Ranking
from dream.evaluation.outputs import column, strictly_falling, write_run_file
from dream.evaluation.results import Results, flat_summary, rows_of, summary_table
from dream.evaluation.statistics import Sampling


def test_the_table_at_the_end_of_a_run():
    results = {"trained": dict.fromkeys(METRICS, 0.5), "bm25": dict.fromkeys(METRICS, 0.25)}
    console = Console(width=100)
    with console.capture() as printed:
        console.print(summary_table(results, "test"))
    lines = printed.get().splitlines()
    assert "nDCG@10" in lines[2]
    assert [line.split()[1] for line in lines if "0.25" in line or "0.50" in line] == ["trained", "bm25"]
    assert flat_summary(results)["bm25/ndcg_at_10"] == 0.25
    assert set(flat_summary(results)) == {f"{system}/{metric}" for system in results for metric in METRICS}


def test_a_plot_has_one_bar_and_one_curve_for_a_system_of_several_seeds():
    metrics = {metric: np.full(6, 0.5) for metric in METRICS}
    better = {metric: np.full(6, 0.75) for metric in METRICS}
    rows = rows_of({"bm25": [metrics], "run": [better, metrics], "run2": [better]}, ["seed=0", "seed=1"])
    found = Results.of(rows, "ndcg_at_10", "bm25", Sampling(20, 0.95, 0), [])
    axes = plots.bars(found, "title").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bm25", "run", "run2"]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.625, 0.75]
    curves = [line.get_label() for line in plots.gains(found, "title").axes[0].get_lines()]
    assert curves[:2] == ["run (better 100%, worse 0%)", "run2 (better 100%, worse 0%)"]


def test_equal_scores_are_written_in_the_order_of_the_ranking():
    falling = strictly_falling(np.array([2.0, 2.0, 2.0, 1.0], np.float32))
    assert (np.diff(falling) < 0).all()
    assert falling == pytest.approx([2, 2, 2, 1], rel=1e-6)


IDS = ["a b", "a_b", "a%20b", "a%2520b", "a\tb", "a\u00a0b", "a  b", "ab", " ", "_", "", "%00", "%", "100%", "a%b c",
       "a%25b c", "caf%C3%A9", "https://en.org/wiki/A_(b)?c=1%2F2", "d17"]  # fmt: skip


def test_ids_without_blanks_are_unchanged_in_a_run_file():
    for name in ("a_b", "ab", "_", "%", "100%", "caf%C3%A9", "https://en.org/wiki/A_(b)?c=1%2F2", "d17", "日本"):
        assert column(name) == name
    assert (column("a b"), column("a%20b"), column("a\tb"), column("")) == ("a%20b", "a%2520b", "a%09b", "%00")
    assert unquote(column("50% of a\u2003b")) == "50% of a\u2003b"


def test_different_ids_stay_different_and_are_one_column():
    columns = [column(name) for name in IDS]
    assert len(set(columns)) == len(IDS)
    assert [one.split() for one in columns] == [[one] for one in columns]


@pytest.fixture
def run_file(tmp_path):
    """Queries "q 1" and "q_1", with all documents of `IDS` in order and in reverse order, with equal scores."""
    rows_QR = np.stack([np.arange(len(IDS)), np.arange(len(IDS))[::-1]])
    judgements = Judgements(["q 1", "q_1"], ["", ""], [{0: 1}, {1: 1}], [{}, {}], 0)
    labelled = SimpleNamespace(judgements=judgements, store=SimpleNamespace(document_names=IDS))
    write_run_file(tmp_path / "x.run", "run seed=0", Ranking(rows_QR, np.ones(rows_QR.shape, np.float32)), labelled)
    return tmp_path / "x.run"


def test_a_run_file_has_six_columns_and_no_id_twice(run_file):
    """As trec_eval and ir-measures read it: columns at white space; (query, document) must be unique."""
    lines = [line.split() for line in run_file.read_text().splitlines()]
    assert {len(line) for line in lines} == {6}
    assert len({(line[0], line[2]) for line in lines}) == len(lines) == 2 * len(IDS)
    assert {line[5] for line in lines} == {"run_seed=0"}


def test_ir_measures_reads_the_same_ranking(run_file):
    ir_measures = pytest.importorskip("ir_measures")
    run = list(ir_measures.read_trec_run(str(run_file)))
    for query, expected in (("q%201", IDS), ("q_1", IDS[::-1])):
        ranked = sorted((row for row in run if row.query_id == query), key=lambda row: -row.score)
        assert [row.doc_id for row in ranked] == [column(name) for name in expected]
    qrels = {"q%201": {"a%20b": 1}, "q_1": {"a_b": 1}}
    measured = ir_measures.iter_calc([ir_measures.RR], qrels, run)
    assert {one.query_id: one.value for one in measured} == {"q%201": 1, "q_1": 1 / (len(IDS) - 1)}
