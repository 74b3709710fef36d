"""dream-evaluate from its config to its files, on a tiny run. Run: pytest tests/evaluation/test_evaluate.py"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from PIL import Image

from dream.commands.evaluate import evaluate
from dream.commands.train import train
from dream.corpora.jsonl import BeirCorpus
from dream.encoders.hf import HFEncoder
from dream.encoders.static import StaticEncoder
from dream.evaluation.benchmark import Benchmark
from dream.evaluation.metrics import METRICS
from dream.evaluation.mteb_adapter import DreamEncoder
from dream.evaluation.searcher import Searcher
from dream.evaluation.system_names import short_names
from dream.evaluation.systems import find_runs
from dream.indexes.exact import ExactIndex
from dream.utils.cached_folders import new_directory
from dream.utils.errors import ConfigError, DataError


def results(tmp_path) -> dict:
    return json.loads((tmp_path / "evaluation" / "results.json").read_text())


def test_a_run_on_its_own_corpus_gives_the_figures_of_its_own_table(config, world, tmp_path, capsys):
    """BM25 ranks whole documents in both, with the stems of the run's language."""
    evaluate(config("systems=[bm25,untrained,run,hybrid,hybrid_weighted]"))
    flat, summary = results(tmp_path)["flat"], json.loads((world / "logs/sweep/0/summary.json").read_text())
    for ours, theirs in (("bm25", "bm25"), ("untrained", "untrained"), ("run", "trained"), ("hybrid", "hybrid")):
        expected = [summary[f"{theirs}/{metric}"] for metric in METRICS]
        assert [flat[f"{ours}/{metric}"] for metric in METRICS] == pytest.approx(expected, rel=1e-12)
    runs = tmp_path / "evaluation" / "runs"
    assert (runs / "untrained.run").read_text().split()[4::6] != (runs / "run.run").read_text().split()[4::6]
    printed = capsys.readouterr().out
    assert "Means over 50 queries. 0 further queries" in printed
    assert "hybrid_weighted: weight" in printed
    assert "tuned on 30 queries of split dev" in printed


def test_the_hybrid_takes_the_weight_that_the_run_has_chosen(config, world, tmp_path, capsys):
    """Weight 0 is BM25's order, and weight 1 the encoder's."""
    for weight, same in ((0.0, "bm25"), (1.0, "run")):
        run = shutil.copytree(world / "logs/sweep/0", tmp_path / f"weight-{weight}")
        with new_directory(run / "encoder", replace=True) as unfinished:
            shutil.copytree(world / "logs/sweep/0/encoder", unfinished, dirs_exist_ok=True)
            content = json.loads((unfinished / "belongs_to.json").read_text()) | {"hybrid_weight": weight}
            (unfinished / "belongs_to.json").write_text(json.dumps(content))
        evaluate(config("systems=[bm25,run,hybrid]", f"run={run}"))
        flat = results(tmp_path)["flat"]
        assert flat["hybrid/ndcg_at_10"] == pytest.approx(flat[f"{same}/ndcg_at_10"])
        assert f"hybrid: weight {weight} on the dense scores" in capsys.readouterr().out


def test_every_file_has_the_same_figures(config, tmp_path):
    """Means of the single queries, and of the run files read again, are those of the table; the plots are pictures."""
    evaluate(config("systems=[bm25,run]"))
    folder, found = tmp_path / "evaluation", results(tmp_path)
    lines = [json.loads(line) for line in (folder / "per_query.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 50
    for system in ("bm25", "run"):
        assert np.mean([line["map_at_100"] for line in lines if line["system"] == system]) == pytest.approx(
            found["flat"][f"{system}/map_at_100"]
        )
        ranked = [line.split() for line in (folder / "runs" / f"{system}.run").read_text().splitlines()]
        relevant = {(line["query"], "d" + line["query"][1:]) for line in lines}
        ranks = {query: int(rank) for query, _, document, rank, _, _ in ranked if (query, document) in relevant}
        reciprocal = sum(1 / rank for rank in ranks.values() if rank <= 10) / 50
        assert reciprocal == pytest.approx(found["flat"][f"{system}/mrr_at_10"])
    assert "| bm25 |" in (folder / "results.md").read_text()
    for name in ("systems", "gain_per_query"):
        assert np.asarray(Image.open(folder / f"{name}.png")).std() > 5
    assert list((folder / "tensorboard").glob("events.*"))


def test_a_run_ranks_with_the_requested_type_of_weights(config, tmp_path, monkeypatch):
    """The run's own embeddings were made by weights of another type, and are not searched."""
    seen = []
    original = StaticEncoder.embed_passages
    monkeypatch.setattr(StaticEncoder, "embed_passages", lambda *a: seen.append(a[0].table_VD.dtype) or original(*a))
    evaluate(config("systems=[bm25,run]"))
    assert not seen
    exact = results(tmp_path)["flat"]["run/ndcg_at_10"]
    evaluate(config("systems=[bm25,run]", "run_dtype=bfloat16"))
    assert set(seen) == {torch.bfloat16}
    assert results(tmp_path)["flat"]["run/ndcg_at_10"] == pytest.approx(exact, abs=0.1)


def test_a_run_without_refresh_embeds_no_corpus_and_can_be_ranked_by(config, world, tmp_path, monkeypatch):
    """For encoders that are slow on a large corpus, if neither objective nor candidates search an index."""
    cfg = OmegaConf.load(world / "logs/sweep/0/config.yaml")
    cfg.paths.run, cfg.seed = str(tmp_path / "run"), 2
    cfg.callbacks.index_refresh = cfg.callbacks.evaluation = cfg.callbacks.best_checkpoint = None
    with monkeypatch.context() as patched:
        patched.setattr(StaticEncoder, "embed_passages", lambda *_: pytest.fail("embeds passages"))
        train(cfg)
    assert not list((tmp_path / "run").glob("index/snapshot-*"))
    evaluate(config(f"run={tmp_path / 'run'}", "systems=[bm25,untrained,run]"))
    runs = tmp_path / "evaluation" / "runs"
    assert (runs / "untrained.run").read_text().split()[4::6] != (runs / "run.run").read_text().split()[4::6]


def test_each_seed_has_a_row_and_all_seeds_have_one(config, world, tmp_path):
    evaluate(config(f"run={world / 'logs/sweep'}", "systems=[bm25,run,hybrid]"))
    flat = results(tmp_path)["flat"]
    rows = [name.removesuffix("/ndcg_at_10") for name in flat if name.endswith("/ndcg_at_10")]
    assert rows == ["bm25", "run seed=0", "run seed=1", "run", "hybrid seed=0", "hybrid seed=1", "hybrid"]
    mean = (flat["run seed=0/ndcg_at_10"] + flat["run seed=1/ndcg_at_10"]) / 2
    assert flat["run/ndcg_at_10"] == pytest.approx(mean)
    assert (tmp_path / "evaluation" / "runs" / "run_seed=1.run").exists()


def test_another_corpus_counts_what_is_missing(config, beir, tmp_path, capsys):
    """Half of the 80 relevant documents are not in the corpus; one query has no relevant document in the labels."""
    labels = beir / "qrels" / "test.tsv"
    labels.write_text(labels.read_text().replace("q79\td79\t1", "q79\td79\t0"))
    evaluate(config("corpus=beir", f"corpus.path={beir}", "systems=[bm25,run]"))
    printed = capsys.readouterr().out
    assert "Means over 79 queries. 1 further queries of the split have no relevant document" in printed
    assert "40 relevant documents (of 40 queries) are not in the corpus: they count as not found" in printed
    assert results(tmp_path)["flat"]["bm25/success_at_5"] == pytest.approx(39 / 79)


def test_a_transformers_model_is_embedded_once(config, beir, llama_folder, tmp_path, monkeypatch):
    embedded = []
    original = HFEncoder.embed_passages
    monkeypatch.setattr(HFEncoder, "embed_passages", lambda *a: embedded.append(len(a[2])) or original(*a))
    chosen = ["corpus=beir", f"corpus.path={beir}", "hf.pooling=last", f"paths.data={tmp_path / 'data'}"]
    systems = f"systems=[bm25,hf:{llama_folder},hybrid:hf:{llama_folder}]"
    evaluate(config(*chosen, systems))
    first, count = results(tmp_path)["flat"], sum(embedded)
    assert count >= 40
    evaluate(config(*chosen, systems))
    assert sum(embedded) == count
    assert results(tmp_path)["flat"] == first
    evaluate(config(*chosen, systems, "hf.query_prefix=ba", "passages_per_document=1"))
    assert sum(embedded) == count + 40


def test_a_sentence_transformers_model_ranks_by_its_own_embeddings(config, beir, llama_folder, tmp_path):
    models = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    transformer = modules.Transformer(str(llama_folder), max_seq_length=512)
    model = models.SentenceTransformer(modules=[transformer, modules.Pooling(32, "mean")], device="cpu")
    model.save(str(tmp_path / "model"))
    evaluate(config("corpus=beir", f"corpus.path={beir}", f"systems=[bm25,st:{tmp_path / 'model'}]",
                    "passages_per_document=1"))  # fmt: skip
    documents = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    passages_ND = model.encode([d["title"] + "\n" + d["text"] for d in documents], normalize_embeddings=True)
    query = json.loads((beir / "queries.jsonl").read_text().splitlines()[50])
    sims = passages_ND @ model.encode(query["text"], normalize_embeddings=True)
    run_file = next((tmp_path / "evaluation" / "runs").glob("st_*.run"))
    ranked = [line.split() for line in run_file.read_text().splitlines() if line.startswith(f"{query['_id']} ")]
    scores = {document: float(score) for _, _, document, _, score, _ in ranked}
    assert len(scores) == 40
    assert [scores[d["_id"]] for d in documents] == pytest.approx(sims.tolist(), abs=2e-3)


def test_a_mistake_is_reported_in_one_line(config, world, beir, corpus_folder, tmp_path, monkeypatch):
    other = ["corpus=beir", f"corpus.path={beir}"]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    for overrides, message in (
        (["systems=bm"], "systems=bm: no such system"),
        (["systems=[bm25,runn]"], "systems=runn: no such system; did you mean run"),
        (["systems=[bm25,hybrid:bm25]"], "systems=hybrid:bm25: fuses BM25 with a dense system"),
        (["systems=[run]"], "baseline=bm25: not one of systems"),
        (["device=cudaa"], "device=cudaa: no such device; choose auto, cpu or cuda"),
        (["device=cuda:99"], "device=cuda:99: this machine has no such GPU"),
        (["passage_tokens=0"], "passage_tokens=0: null, or a whole number, at least 1"),
        (["embedding.batch_passages=0"], "embedding.batch_passages=0: at least 1"),
        (["hybrid_weighted.step=0"], "hybrid_weighted.step=0: above 0"),
        (["hybrid_weighted.normalisation=max"], "hybrid_weighted.normalisation=max: choose minmax or zscore"),
        (["statistics.resamples=null"], "statistics.resamples=null: at least 1"),
        (["statistics.confidence=1"], "statistics.confidence=1: between 0 and 1"),
        (["systems=[bm25,run,run]"], "names a system twice"),
        (["run_dtype=int8"], "run_dtype=int8: not a torch type"),
        (["metric=ndcg"], "metric=ndcg: choose from ndcg_at_10"),
        (["split=train"], "split=train: corpus jsonl has the splits dev, test"),
        (["systems=[bm25,hybrid_weighted]", "split=dev"], "cannot be reported on it; choose another split"),
        ([*other, "systems=[bm25,hybrid_weighted]"], "split dev_split=dev, but corpus beir only has test; use hybrid"),
        ([*other, "systems=[bm25,st:some/model]"], r"pip install 'dream-retrieval\[export\]'"),
        ([*other, f"systems=[bm25,hf:{beir}]"], "has no config.json; give the folder"),
        ([f"run=[{world / 'logs/sweep/0'},{world / 'logs/sweep/0'}]"], "two of the runs have the same seed"),
        ([f"run={tmp_path}"], "neither a run nor a sweep"),
    ):
        with pytest.raises((ConfigError, InstantiationException), match=message):
            evaluate(config(*overrides))
    (beir / "queries.jsonl").write_text("")
    with pytest.raises(DataError, match=r"80 queries are not in .*queries\.jsonl"):
        evaluate(config(*other, "systems=[bm25]"))
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="no line with a label"):
        evaluate(config(*other, "systems=[bm25]"))


@pytest.mark.parametrize(("deduplicate", "documents"), [("false", 41), ("true", 40)])
def test_copies_in_another_corpus_are_kept_unless_deduplicated(config, beir, tmp_path, deduplicate, documents):
    """40 documents and a copy of the last one. evaluation.yaml has the value that was used."""
    lines = (beir / "corpus.jsonl").read_text()
    (beir / "corpus.jsonl").write_text(lines + lines.splitlines()[-1].replace('"d79"', '"copy"') + "\n")
    evaluate(config("corpus=beir", f"corpus.path={beir}", "systems=[bm25]", f"deduplicate={deduplicate}"))
    assert results(tmp_path)["documents"] == documents
    used = OmegaConf.load(tmp_path / "evaluation" / "evaluation.yaml").corpus
    assert str(used.deduplicate).lower() == deduplicate


def test_deduplicate_of_the_corpus_itself_is_refused(config, beir, monkeypatch):
    """It would be ignored; the message names the key that is read."""
    overrides = ["corpus=beir", f"corpus.path={beir}", "corpus.deduplicate=true"]
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": overrides}}))
    with pytest.raises(ConfigError, match=r"corpus\.deduplicate=true: .* write deduplicate=true"):
        evaluate(config(*overrides, "systems=[bm25]"))


def test_another_corpus_may_have_no_copies_to_keep(config, tmp_path):
    """pydocs has no key `deduplicate`."""
    cfg = config("corpus=pydocs", "corpus.packages=[omegaconf]", "corpus.stdlib=false", "corpus.heldout_fraction=0.3",
                 "systems=[bm25]", "deduplicate=true", f"paths.data={tmp_path / 'data'}")  # fmt: skip
    evaluate(cfg)
    assert results(tmp_path)["corpus"] == "pydocs"
    assert results(tmp_path)["split"] == "test"


def test_labels_that_name_no_document_are_refused(config, beir):
    """The corpus has d40 to d79; the labels' ids are those of another field, or of another corpus."""
    labels = beir / "qrels" / "test.tsv"
    labels.write_text(labels.read_text().replace("\td", "\tDocument "))
    message = (r"split test of corpus beir: none of the 80 relevant documents is in the corpus: .* 'Document 0', "
               r".* 'd40'; set corpus\.id_field")  # fmt: skip
    with pytest.raises(DataError, match=message):
        evaluate(config("corpus=beir", f"corpus.path={beir}", "systems=[bm25,run]"))


def test_missing_documents_are_warned_of_once(config, beir, capsys):
    """BM25 and the run search two stores of the corpus, with the same labels."""
    evaluate(config("corpus=beir", f"corpus.path={beir}", "systems=[bm25,run]"))
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: split test of corpus beir: 50.0% of the relevant documents (40 of 80) are not in the corpus, e.g. "
        "'d0', 'd1', 'd2': they count as not found"
    ]


def test_an_encoder_of_an_own_package_is_opened_if_the_package_is_trusted(config, run_of_an_own_encoder, tmp_path):
    chosen = [f"run={run_of_an_own_encoder}", "systems=[bm25,untrained,run,hybrid]"]
    with pytest.raises(DataError, match=r"refused, because it names my_encoders\.MyEncoder.*add trust=\[my_encoders\]"):
        evaluate(config(*chosen))
    evaluate(config(*chosen, "trust=[my_encoders]"))
    import my_encoders

    names = [folder.name for folder in my_encoders.MyEncoder.opened]
    assert names == ["untrained_encoder", "encoder"]
    own = results(tmp_path)["flat"]
    evaluate(config(chosen[1]))
    assert own == results(tmp_path)["flat"]


def test_stores_and_embeddings_that_were_moved_are_used(config, moved, world, tmp_path, monkeypatch):
    """The run's config names the old folder; the command's paths.data is the new one."""
    before = sorted((moved / "data").rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr(StaticEncoder, "embed_passages", lambda *_: pytest.fail("embeds passages"))
        evaluate(config(f"run={moved / 'logs/sweep/0'}", f"paths.data={moved / 'data'}", "systems=[bm25,run]"))
    assert sorted((moved / "data").rglob("*")) == before
    summary = json.loads((world / "logs/sweep/0/summary.json").read_text())
    assert results(tmp_path)["flat"]["run/ndcg_at_10"] == summary["trained/ndcg_at_10"]
    assert not (tmp_path / "gone").exists()


def test_documents_that_share_an_id_are_refused(config, beir):
    corpus = (beir / "corpus.jsonl").read_text().replace('"d50"', '"d51"')
    (beir / "corpus.jsonl").write_text(corpus)
    with pytest.raises(DataError, match="d51"):
        evaluate(config("corpus=beir", f"corpus.path={beir}", "systems=[bm25]"))


def test_an_encoder_of_another_width_is_refused_by_its_index(config, world, tmp_path):
    """The run's encoder folder was replaced by another; its snapshot records the width of its embeddings."""
    run = tmp_path / "run"
    shutil.copytree(world / "logs/sweep/0", run)
    belongs_to = (run / "encoder" / "belongs_to.json").read_text()
    shutil.rmtree(run / "encoder")
    shutil.copytree(run / "untrained_encoder", run / "encoder")
    from safetensors.torch import load_file, save_file

    from dream.runs.load import open_run
    from dream.utils.cached_folders import seal

    weights = load_file(run / "encoder" / "model.safetensors")
    save_file(weights | {"table": weights["table"][:, :8].contiguous()}, run / "encoder" / "model.safetensors")
    seal(run / "encoder")
    with pytest.raises(DataError, match="not the encoder folder that the run wrote"):
        open_run(run)
    (run / "encoder" / "belongs_to.json").write_text(belongs_to)
    seal(run / "encoder")
    with pytest.raises(DataError, match="embeddings of width 64, but the encoder's width is 8"):
        open_run(run)
    evaluate(config(f"run={run}", "systems=[bm25,run]"))  # embeds the corpus with the new encoder
    assert results(tmp_path)["flat"]["run/recall_at_100"] > 0


def test_mteb_gets_the_vectors_of_the_index(world, beir, tmp_path):
    """One vector a document: that of its first `max_tokens` tokens."""
    encoder = DreamEncoder(str(world / "logs/sweep/0"))
    corpus = BeirCorpus("beir", str(beir), False, "error", 32, None)
    benchmark = Benchmark(corpus, tmp_path / "data", encoder.encoder.max_tokens, 1)
    store = benchmark.store(encoder.encoder, encoder.encoder.max_tokens)
    handle = benchmark.embedded(encoder.encoder, store, ExactIndex(1_000, True), 16, 16)
    documents = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    batches = [
        {"text": [d["title"] + " " + d["text"] for d in part], "title": [d["title"] for d in part],
         "body": [d["text"] for d in part]}
        for part in (documents[:30], documents[30:])
    ]  # fmt: skip
    about = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    embedding_ND = encoder.encode(batches, prompt_type="document", **about)
    assert np.allclose(embedding_ND, handle.current.rows(np.arange(40)), atol=1e-3)
    query_QD = encoder.encode([{"text": ["some words"]}], prompt_type="query", **about)
    assert np.array_equal(query_QD, encoder.encoder.embed_queries(["some words"]).numpy())
    assert encoder.similarity(query_QD, embedding_ND).shape == (1, 40)
    assert encoder.similarity_pairwise(embedding_ND, embedding_ND).numpy() == pytest.approx(np.ones(40), abs=1e-3)


def test_mteb_accepts_the_adapter_as_an_encoder(world):
    mteb = pytest.importorskip("mteb")
    encoder = DreamEncoder(str(world / "logs/sweep/0"))
    assert isinstance(encoder, mteb.EncoderProtocol)
    assert encoder.mteb_model_meta.embed_dim == encoder.encoder.width


def test_paths_are_shortened_if_the_names_still_differ():
    assert short_names(["bm25", "st:/a/b/model", "hybrid:st:/a/b/model", "st:org/name"]) == {
        "bm25": "bm25",
        "st:/a/b/model": "st:b/model",
        "hybrid:st:/a/b/model": "hybrid:st:b/model",
        "st:org/name": "st:org/name",
    }
    assert short_names(["st:/a/b/model", "st:/c/b/model"])["st:/a/b/model"] == "st:/a/b/model"


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(config, world, tmp_path):
    run = shutil.copytree(world / "logs/sweep/1", tmp_path / "other")
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.optimizer.optimizer.lr *= 2
    OmegaConf.save(cfg, run / "config.yaml")
    with pytest.raises(ConfigError, match=r"differ in optimizer\.optimizer\.lr \(0\.\d+, 0\.\d+\); evaluate them"):
        evaluate(config(f"run=[{world / 'logs/sweep/0'},{run}]"))


def test_a_sweeps_folder_names_its_finished_runs(world):
    assert find_runs(str(world / "logs/sweep")) == [world / "logs/sweep/0", world / "logs/sweep/1"]


@pytest.mark.parametrize("language", ["german", "missing"])
def test_a_run_is_searched_in_its_own_language(config, world, tmp_path, language):
    """The run's store serves all languages. A run of before the key counts plain words."""
    run = tmp_path / "run"
    shutil.copytree(world / "logs/sweep/0", run)
    cfg = OmegaConf.load(run / "config.yaml")
    del cfg.corpus.language
    if language == "german":
        cfg.corpus.language = language
    OmegaConf.save(cfg, run / "config.yaml")
    stores = sorted((world / "data/stores").iterdir())
    evaluate(config(f"run={run}", "systems=[bm25,run]"))
    searcher = Searcher(run)
    assert searcher.store.language == (language if language == "german" else None)
    assert searcher.search("mi", mode="bm25") == []
    name = f"-{language}-" if language == "german" else "-plain-"
    [made] = (path.name for path in (world / "data/bm25").iterdir() if name in path.name)
    assert made.endswith("-documents")
    assert sorted((world / "data/stores").iterdir()) == stores


def test_another_corpus_has_its_own_language(config, world, beir, tmp_path):
    """Also if it is the run's corpus, whose store is used."""
    corpus = ["corpus=beir", f"corpus.path={beir}", "systems=[bm25]", f"paths.data={tmp_path / 'data'}"]
    evaluate(config(*corpus, "corpus.language=french"))
    [index] = (tmp_path / "data/bm25").iterdir()
    assert "-french-" in index.name
    with pytest.raises(InstantiationException, match="corpus.language=klingon: choose null for plain words, or arabic"):
        evaluate(config(*corpus, "corpus.language=klingon"))
