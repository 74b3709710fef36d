"""The table at the end of a run, also of resumed runs. Run: pytest tests/callbacks/test_final_report.py"""

import csv
import json

import pytest
import torch
from tests.callbacks.conftest import CONSTANT_RATE

from dream.evaluation.labelled_queries import LabelledQueries
from dream.indexes.bm25 import BM25Index
from dream.utils.atomic_io import read_checked_json, write_checked_json

SYSTEMS = ("bm25", "untrained", "trained", "hybrid")
METRICS = ("ndcg_at_10", "recall_at_10", "recall_at_100", "mrr_at_10")
SHORT = ["trainer.max_steps=6", "callbacks.index_refresh.every_n_steps=3", "optimizer.optimizer.lr=0.01", CONSTANT_RATE]


@pytest.fixture
def report(train_retriever, labels):
    """report(run, *overrides, …) → (reported metrics, module)"""

    def run(name: str, *overrides: str, short: bool = True, **options):
        module, trainer = train_retriever(name, *labels, *(SHORT if short else []), *overrides, **options)
        found = {metric: value.item() for metric, value in trainer.callback_metrics.items()}
        return {key: value for key, value in found.items() if key.split("/")[0] in (*SYSTEMS, "val")}, module

    return run


def refreshes(module) -> list[int]:
    """Records the steps of the refreshes of a module."""
    steps, refresh = [], module.index.refresh

    def recorded(encoder, store, step, *rest):
        steps.append(step)
        return refresh(encoder, store, step, *rest)

    module.index.refresh = recorded
    return steps


@pytest.fixture
def stopped(report, tmp_path):
    """(metrics of an uninterrupted run, its folder, with a checkpoint of step 4)"""
    metrics, _ = report("run")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    report("run", "trainer.max_steps=4", "candidates.schedule_steps=6")  # as in the longer run
    return metrics, tmp_path / "run"


def test_a_fresh_run(report, corpus, tmp_path, capsys) -> None:
    """The dev split is also the report split, so the trained encoder's scores are the last evaluation's."""
    before: dict[str, torch.Tensor] = {}

    def remember(module) -> None:
        before.update({name: weight.clone() for name, weight in module.encoder.state_dict().items()})

    metrics, module = report("run", disturb=remember)
    for system in SYSTEMS:
        assert all(0 < metrics[f"{system}/{metric}"] <= 1 for metric in METRICS)
    assert {metric: metrics[f"trained/{metric}"] for metric in METRICS} == pytest.approx(
        {metric: metrics[f"val/{metric}"] for metric in METRICS}
    )
    assert metrics["untrained/ndcg_at_10"] != metrics["trained/ndcg_at_10"]
    run = tmp_path / "run"
    stored = read_checked_json(run / "untrained.json")["scores"]
    assert {metric: metrics[f"untrained/{metric}"] for metric in METRICS} == pytest.approx(
        {metric: stored[metric] for metric in METRICS}
    )
    printed = capsys.readouterr().out
    assert all(f"{metrics[f'{system}/ndcg_at_10']:.4f}" in printed for system in SYSTEMS)
    rows = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    logged = [float(row["report/hybrid/ndcg_at_10"]) for row in rows if row["report/hybrid/ndcg_at_10"]]
    assert logged == pytest.approx([metrics["hybrid/ndcg_at_10"]])
    # Ranking again with the weights of before gives the same scores.
    module.encoder.load_state_dict(before)
    module.index.refresh(module.encoder, module.store, 0, "cpu", 50)
    queries = LabelledQueries(corpus, module.store, "dev")
    again = queries.score(queries.by_encoder(module.encoder, module.index))
    assert again == pytest.approx(stored)
    assert (run / "untrained_encoder").is_dir()


def test_bm25_ranks_whole_documents(report, corpus) -> None:
    metrics, module = report("run")
    queries = LabelledQueries(corpus, module.store, "dev")
    index = BM25Index.open_or_build(module.store, "document")
    expected = queries.score(queries.by_bm25(index))
    assert {metric: metrics[f"bm25/{metric}"] for metric in METRICS} == pytest.approx(
        {metric: expected[metric] for metric in METRICS}
    )
    made = [path.name for path in module.store.cache_folder("bm25").iterdir()]
    assert any("-english-" in name and name.endswith("-documents") for name in made)


def test_the_corpus_is_embedded_once_before_training(report) -> None:
    steps: list[list[int]] = []
    report("run", disturb=lambda module: steps.append(refreshes(module)))
    assert steps == [[0, 3, 6]]


def test_a_resumed_run_reads_the_scores_of_the_untrained_encoder(report, stopped) -> None:
    metrics, run = stopped
    content = read_checked_json(run / "untrained.json")
    write_checked_json(run / "untrained.json", content | {"scores": dict.fromkeys(content["scores"], 0.125)})
    steps: list[list[int]] = []
    resumed, _ = report(
        "run", ckpt=run / "checkpoints" / "last.ckpt", disturb=lambda module: steps.append(refreshes(module))
    )
    assert steps == [[6]]
    assert {resumed[f"untrained/{metric}"] for metric in METRICS} == {0.125}
    assert all(resumed[key] == value for key, value in metrics.items() if not key.startswith("untrained/"))


@pytest.mark.parametrize("problem", ["damaged", "missing", "of other weights"])
def test_a_resumed_run_ranks_again_without_stored_scores(report, stopped, capsys, problem) -> None:
    metrics, run = stopped
    file = run / "untrained.json"
    if problem == "damaged":
        file.write_text(file.read_text().replace("0", "1", 1))
    elif problem == "missing":
        file.unlink()
    else:
        write_checked_json(file, read_checked_json(file) | {"encoder_fingerprint": "other"})
    capsys.readouterr()
    resumed, _ = report("run", ckpt=run / "checkpoints" / "last.ckpt")
    assert resumed == metrics
    assert (f"warning: {file}: damaged" in capsys.readouterr().out) is (problem == "damaged")
    assert read_checked_json(file)["encoder_fingerprint"] != "other"


def test_a_run_resumed_after_its_last_step(report, tmp_path) -> None:
    """Lightning calls no hooks of training then."""
    metrics, _ = report("run")
    resumed, _ = report("run", ckpt=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert resumed == metrics


def test_a_new_run_from_a_checkpoint_ranks_by_its_own_untrained_encoder(report, stopped, tmp_path) -> None:
    """With ckpt=FILE, the folder is new: the untrained encoder is the one before the checkpoint is loaded."""
    metrics, run = stopped
    before = (run / "untrained.json").read_bytes()
    new, _ = report("new", ckpt=run / "checkpoints" / "last.ckpt")
    assert new == metrics
    assert (run / "untrained.json").read_bytes() == before
    assert json.loads((tmp_path / "new" / "untrained.json").read_text())


def test_an_unlabelled_corpus_has_no_table(train_retriever, tmp_path) -> None:
    _, trainer = train_retriever("run", *SHORT)
    assert not [key for key in trainer.callback_metrics if key.split("/")[0] in SYSTEMS]
    assert not (tmp_path / "run" / "untrained.json").exists()
    assert (tmp_path / "run" / "untrained_encoder").is_dir()


def test_without_index_refresh_there_is_no_table(report, tmp_path) -> None:
    without = [f"callbacks.{name}=null" for name in ("index_refresh", "evaluation", "best_checkpoint")]
    overrides = [*without, "candidates=bm25", "callbacks.final_report.keep_untrained=false"]
    metrics, module = report("run", *overrides, short=False)
    assert metrics == {}
    assert module.index.current is None
    assert not (tmp_path / "run" / "untrained_encoder").exists()
