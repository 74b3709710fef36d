"""The benchmarks' page: ratios, bars and how they are shown. Run: pytest tests/benchmarks"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """(side_by_side, report), which write their results into a temporary folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import report
    import side_by_side

    for module in (side_by_side, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["benchmarks/sleeping.py", "--rounds", "3"])
    return side_by_side, report


def test_contestants_alternate_after_one_round_that_does_not_count(modules):
    order = []
    slow, fast = lambda: (order.append("slow"), time.sleep(0.05)), lambda: order.append("fast")
    seconds = modules[0].alternate({"slow": slow, "fast": fast}, rounds=2)
    assert order == ["slow", "fast"] * 3
    assert seconds["slow"] >= 0.05 > seconds["fast"]


def test_the_page_shows_each_ratio_with_its_bar(modules):
    side_by_side, report = modules
    rows = [
        side_by_side.Row("embedding", "20 documents/s", "peer: 10 documents/s", 2.0, 1.8, floor="half of the peak"),
        side_by_side.Row("refresh", "2 s", "alone: 1 s", 2.0, 1.15, at_most=True),
        side_by_side.Row("waiting", "1 s", "2 s", 0.5),
    ]
    side_by_side.record("sleeping", rows)
    content = json.loads((side_by_side.RESULTS / "sleeping.json").read_text())
    assert content["rows"] == [asdict(row) for row in rows]
    page = report.page()
    assert "`python benchmarks/sleeping.py --rounds 3`" in page
    assert "| embedding | 20 documents/s | peer: 10 documents/s | 2.00 (≥ 1.8: reached) | half of the peak |" in page
    assert "| refresh | 2 s | alone: 1 s | 2.00 (≤ 1.15: **not reached**) |  |" in page
    assert "| waiting | 1 s | 2 s | 0.50 |  |" in page


def test_bandwidth_and_peak_are_those_of_a_computer(modules):
    side_by_side = modules[0]
    assert 1e8 < side_by_side.read_bandwidth(megabytes=8) < 1e13
    assert 1e8 < side_by_side.product_peak(rows=64, width=64, inner=64) < 1e15
