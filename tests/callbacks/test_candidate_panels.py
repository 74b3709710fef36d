"""The supervision panel says what the training step said, in a table that any text leaves intact.

pytest tests/callbacks/test_supervision.py
"""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dream.callbacks.candidate_panels import CandidatePanels, _plain
from dream.callbacks.index_refresh import IndexRefresh
from dream.utils.errors import ConfigError

KNOBS = {"every_n_steps": 2, "windows": 2, "candidates": 2, "characters": 30, "projected": 25}


def callbacks() -> list:
    return [IndexRefresh(every_n_steps=0, batch_passages=50, keep=1), CandidatePanels(**KNOBS)]


def panels(logger: TensorBoardLogger) -> list[tuple[int, str]]:
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    tag = "supervision/text_summary"
    if tag not in events.Tags()["tensors"]:
        return []
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_panels(train, store, tmp_path, accumulate) -> None:
    """Of the candidates 0.2, 0.7, 0.1 of window w (passages w, w + 1, none), the two likeliest, best first."""
    logger = TensorBoardLogger(tmp_path)
    train(tmp_path, callbacks(), 5, logger=logger, accumulate_grad_batches=accumulate)
    shown = panels(logger)
    assert [step for step, _ in shown] == [2, 4]
    first = (2 * accumulate - 1) * 4  # number of the batch that completed step 2, times its size
    tables = shown[0][1].split("---\n\n**")
    assert len(tables) == 2
    rows = [line for line in shown[0][1].splitlines() if line.startswith("| 0")]
    assert [row.split(" | ")[0] for row in rows] == ["| 0.700", "| 0.200"] * 2
    assert store.passage_text(first + 1)[:30].strip() in rows[0]
    assert store.passage_text(first)[:30].strip() in rows[1]
    assert store.titles[int(store.passage_documents[first])] in rows[1]
    context, target = store.window_text(first)
    assert " ".join(context[-30:].split()) in shown[0][1]
    assert " ".join(target[:30].split()) in shown[0][1]


def test_null_passage(store) -> None:
    monitor = CandidatePanels(**KNOBS)
    table = monitor.table(store, 0, torch.tensor([3, -1]), torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]))
    assert table.splitlines()[-2] == "| 0.750 | 0.500 | *no passage* |  |"


def test_any_text_keeps_the_table(store) -> None:
    assert _plain("a | b\n\n`c` <script> *d* _e_ \\") == r"a \| b \`c\` &lt;script> \*d\* \_e\_ " + "\\\\"


def test_projector(train, store, tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    module, _ = train(tmp_path, callbacks(), 3, logger=logger)
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


def test_objectives_without_posterior_are_skipped(train, tmp_path) -> None:
    logger = TensorBoardLogger(tmp_path)
    train(tmp_path, callbacks(), 4, logger=logger, posterior=False)
    assert panels(logger) == []


def test_other_loggers_are_left_alone(train, tmp_path) -> None:
    train(tmp_path, callbacks(), 4, logger=CSVLogger(tmp_path))
    assert not list(tmp_path.rglob("tensors.tsv"))


@pytest.mark.parametrize("name", ["every_n_steps", "windows", "candidates", "characters"])
def test_bad_values_are_named(name) -> None:
    with pytest.raises(ConfigError, match=rf"^callbacks\.supervision\.{name}=0: "):
        CandidatePanels(**(KNOBS | {name: 0}))
