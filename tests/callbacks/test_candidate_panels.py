"""The candidate panels show the outputs of the training step, as TensorBoard renders them.

pytest tests/callbacks/test_candidate_panels.py
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tests.callbacks.conftest import APART, BATCH, WINDOWS

from dream.callbacks.candidate_panels import CandidatePanels, choose
from dream.callbacks.index_refresh import IndexRefresh
from dream.loggers.candidate_table import BAR, Row, Window, bar, bold, candidate_table, excerpt
from dream.loggers.tensorboard import LAYOUT
from dream.utils.errors import ConfigError

KINDS = ["confident", "disagreement", "uncertain"]


@pytest.fixture
def callbacks(monkeypatch) -> list:
    monkeypatch.setattr("dream.callbacks.candidate_panels.PROJECTED", 25)
    return [IndexRefresh(every_n_steps=0, batch_passages=50), CandidatePanels(every_n_steps=2)]


def shown(logger: TensorBoardLogger) -> dict[str, dict[int, str]]:
    """kind → step → HTML, as TensorBoard's text plugin renders it"""
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in events.Tags()["tensors"]:
        if match := re.fullmatch(r"candidates/(\w+)/text_summary", tag):
            rendered = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)}
            found[match[1]] = {step: markdown_to_safe_html(text) for step, text in rendered.items()}
    return found


def cells(html: str) -> list[list[str]]:
    """Texts of a rendered table, without tags."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.DOTALL)] for row in rows]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_panels(train, callbacks, store, tmp_path, accumulate) -> None:
    """Candidates of window w are passages w, w + 50 and none, with probabilities 0.2, 0.7 and 0.1: best first.

    Entropy .2 ln(1/.2) + .7 ln(1/.7) + .1 ln(1/.1) = 0.80 of at most ln 3 = 1.10 nats.
    """
    logger = TensorBoardLogger(tmp_path)
    train(tmp_path, callbacks, 5, logger=logger, accumulate_grad_batches=accumulate)
    panels = shown(logger)
    assert sorted(panels) == KINDS
    assert {kind: list(steps) for kind, steps in panels.items()} == {kind: [2, 4] for kind in KINDS}
    first = (2 * accumulate - 1) * BATCH  # row of the first window of the batch that completes step 2
    texts = {" ".join(store.window_text(window)[1].split()): window for window in WINDOWS[first : first + 4]}
    windows = []
    for kind in KINDS:
        html = panels[kind][2]
        assert "posterior entropy 0.80 of at most 1.10 nats, gain 0.25 nats per token" in html
        context, target, *rows = cells(html)
        windows.append(window := texts[target[1]])
        document = store.titles[int(store.windows["document"][window])]
        assert context[1] == f"{document}: {' '.join(store.window_text(window)[0].split())}"
        assert [re.findall(r"LM +\S+ +(\S+)", row[0]) for row in rows] == [[".70"], [".20"], [".10"]]
        for row, passage in zip(
            rows, ((window + APART) % len(store.passages), window % len(store.passages)), strict=False
        ):
            title = store.titles[int(store.passage_documents[passage])]
            assert row[1] == f"{title}: {' '.join(store.passage_text(passage).split())}"
        assert rows[2][1] == "no passage"
    assert len(set(windows)) == 3


def test_the_chosen_windows_differ(store) -> None:
    """By hand, five windows with two candidates.

    Total variation: .5 .1 .4 0 0. Row 0 disagrees most. Row 1 has the lowest posterior entropy of all, but the document
    of row 0; of the others that is row 2. Row 3 has the highest entropy, but is a copy of row 2; next is row 4.
    """
    documents = store.windows["document"].tolist()
    a, b = documents[0], documents[-1]
    ours, other = [w for w, d in enumerate(documents) if d == a], [w for w, d in enumerate(documents) if d == b]
    third = next(w for w, d in enumerate(documents) if d not in (a, b))
    window_ids = [ours[0], ours[1], other[0], other[0], third]
    posterior_SK = torch.tensor([[0.9, 0.1], [0.99, 0.01], [0.95, 0.05], [0.5, 0.5], [0.6, 0.4]])
    retriever_SK = torch.tensor([[0.4, 0.6], [0.89, 0.11], [0.55, 0.45], [0.5, 0.5], [0.6, 0.4]])
    expected = {"disagreement": 0, "confident": 2, "uncertain": 4}
    assert choose(store, window_ids, posterior_SK, retriever_SK) == expected


def test_near_copies_are_shown_once(store) -> None:
    texts = [("red green", "blue"), ("red green", "black"), ("one two", "three")]
    rows = {"document": np.array([1, 2, 3])}
    windows = SimpleNamespace(
        window_rows=lambda ids: {"document": rows["document"][ids]}, window_text=lambda window: texts[window]
    )
    posterior_SK = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]])
    assert choose(windows, [0, 1, 2], posterior_SK, 1 - posterior_SK) == {"disagreement": 0, "confident": 2}


PROBABILITIES = [(0.3, 0.0), (0.25, 0.1), (0.2, 0.0), (0.19, 0.0), (0.06, 0.9)]  # LM, retriever
ROWS = [
    Row(p, q, f"{word} {p}", f"d{p}")
    for word, (p, q) in zip(["alpha", "beta", "gamma", "delta", "epsilon"], PROBABILITIES, strict=True)
]


def test_the_retrievers_best_candidate_is_always_shown() -> None:
    html = markdown_to_safe_html(candidate_table("h", Window("c", "t", "d"), ROWS))
    *_, third, last = cells(html)
    assert "4 of 5 candidates" in html
    assert ".20" in third[0]
    assert last == [f"LM        {bar(0.06)}\nretriever {bar(0.9)}", "d0.06: epsilon 0.06"]


def test_near_copies_of_a_candidate_are_counted() -> None:
    """By hand: d2 and d3 have 8 of 10 words in common with d1, d4 has 7 of 9. d3 is the retriever's best."""
    same = "red green blue cyan pink gold lime"
    texts = [f"{same} teal white", f"{same} teal black", f"{same} teal grey", same]
    posterior, retriever = [0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 1.0, 0.0]
    rows = [Row(posterior[k], retriever[k], text, f"d{k + 1}") for k, text in enumerate(texts)]
    found = cells(markdown_to_safe_html(candidate_table("h", Window("c", "t", "d"), rows)))
    expected = [f"d1 (and 1 near copy): {texts[0]}", f"d3: {texts[2]}", f"d4: {same}"]
    assert [text for _, text in found[2:]] == expected


@pytest.mark.parametrize(
    ("probability", "blocks", "number"),
    [(0, 0, ".00"), (0.03, 0, ".03"), (0.5, 8, ".50"), (0.13, 2, ".13"), (0.996, 16, "1.0"), (1, 16, "1.0")],
)
def test_bars(probability, blocks, number) -> None:
    assert bar(probability) == "▆" * blocks + " " * (BAR - blocks) + " " + number


def test_numbers_cannot_break() -> None:
    """TensorBoard breaks lines anywhere, except in <pre>."""
    html = markdown_to_safe_html(candidate_table("h", Window("c", "t", "d"), ROWS))
    for number in (".30", ".25", ".20", ".90"):
        assert re.search(rf"<pre>[^<]*{re.escape(number)}[^<]*</pre>", html)


@pytest.mark.parametrize(
    "text", ["a | b\n\n`c` <script>alert(1)</script> *d* _e_ \\ [f](g) &lt; </td></table>", "<b", "```x"]
)
def test_any_text_keeps_the_table(text) -> None:
    html = markdown_to_safe_html(candidate_table(text, Window(text, text, text), [Row(0.5, 0.5, text, text)]))
    shown = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert [len(row) for row in cells(html)] == [2, 2, 2]
    assert cells(html)[1][1] == shown
    assert "<script" not in html


def test_words_of_the_target_are_bold_in_candidates() -> None:
    """Content words only, whatever their case; an underscore ends a word."""
    row = Row(1, 1, "The learning_rate of THE step & a Step", "d")
    html = markdown_to_safe_html(candidate_table("h", Window("c", "of the step rate", "d"), [row]))
    assert "The learning_<strong>rate</strong> of THE <strong>step</strong> &amp; a <strong>Step</strong>" in html
    assert bold("x < y", {"z"}) == "x &lt; y"


def test_the_excerpt_has_most_words_of_the_target() -> None:
    text = "alpha " + "filler " * 20 + "beta gamma " + "filler " * 20
    part = excerpt(text, {"alpha", "beta", "gamma"}, 40)
    assert "beta gamma" in part
    assert part.startswith("… filler")
    assert part.endswith("filler …")
    assert len(part) <= 44
    assert excerpt(text, {"missing"}, 40) == "alpha filler filler filler filler filler …"
    assert excerpt("short  text", {"missing"}, 40) == "short text"


def test_projector(train, callbacks, store, tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    module, _ = train(tmp_path, callbacks, 3, logger=logger)
    folders = sorted(path.parent.parent.name for path in tmp_path.rglob("tensors.tsv"))
    assert folders == ["00000", "00003"]
    folder = next(path.parent for path in tmp_path.rglob("00003/*/tensors.tsv"))
    vectors = torch.tensor([[float(x) for x in line.split("\t")] for line in (folder / "tensors.tsv").open()])
    header, *rows = (folder / "metadata.tsv").read_text().splitlines()
    assert header == "passage\tdocument\ttext"
    assert len(rows) == len(vectors) == 25
    passage_ids = [int(row.split("\t")[0]) for row in rows]
    assert len(set(passage_ids)) == 25
    torch.testing.assert_close(vectors, torch.from_numpy(module.index.current.rows(passage_ids)))
    assert rows[0].split("\t")[1] == store.titles[int(store.passage_documents[passage_ids[0]])]


def test_objectives_without_posterior_are_skipped(train, callbacks, tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    train(tmp_path, callbacks, 4, logger=logger, posterior=False)
    assert shown(logger) == {}


def test_nothing_is_written_for_other_loggers(train, callbacks, tmp_path) -> None:
    train(tmp_path, callbacks, 4, logger=CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("tensors.tsv"))


def test_a_bad_value_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^callbacks\.candidate_panels\.every_n_steps=0: "):
        CandidatePanels(every_n_steps=0)


def test_a_run_logs_every_curve_of_the_layout(train_retriever, labels) -> None:
    """A curve with a wrong name would be an empty chart."""
    options = ["logger=tensorboard", "trainer.max_steps=4", "callbacks.index_refresh.every_n_steps=2"]
    _, trainer = train_retriever("run", *labels, *options)
    tags = set(EventAccumulator(trainer.logger.log_dir).Reload().Tags()["scalars"])
    assert {curve for charts in LAYOUT.values() for chart in charts.values() for curve in chart} <= tags
    assert not [tag for tag in tags if "epoch" in tag or "hp_metric" in tag]
