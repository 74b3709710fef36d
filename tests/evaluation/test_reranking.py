"""Systems lm…: a language model ranks documents again. Run: pytest tests/evaluation/test_reranking.py"""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tests.evaluation.conftest import composed
from tests.random_models import SCORING, save_random_model
from tests.word_store import word_store
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from dream.commands.evaluate import evaluate, settings_of
from dream.evaluation.fusion import mix_top, ordered, replace_top
from dream.evaluation.held_out_windows import draw_windows
from dream.evaluation.metrics import Ranking
from dream.evaluation.reranking import LanguageModelRanker, scorer_of_run
from dream.evaluation.results import way_to_teacher
from dream.evaluation.system_names import Reranked, dense_part, is_tuned, reranked, short_names, untuned
from dream.scorers.hf import HFScorer
from dream.utils.errors import ConfigError

ASKED = SCORING | {"template": ["{bos}", "{passage}", "\nQuestion: ", "{context}"]}


SMALL = ("lm.scoring.max_passage_tokens=16", "lm.scoring.compile=false", "lm.scoring.dtype=float32")


def ranking(rows, scores) -> Ranking:
    return Ranking(np.array(rows), np.array(scores, dtype=np.float32))


def results(tmp_path) -> dict:
    return json.loads((tmp_path / "evaluation" / "results.json").read_text())


@pytest.fixture(scope="module")
def wide_llama(tokenizer, tmp_path_factory) -> str:
    """A random model with wide weights, so that passages change what it predicts."""
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=2, max_position_embeddings=512)  # fmt: skip
    return save_random_model(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("wide"))


@pytest.fixture
def copier(tmp_path):
    """A model made by hand: it attends to all earlier words equally, and predicts those that it saw most often."""

    def make(texts: list[str]) -> str:
        words = ["?", *dict.fromkeys(" ".join(texts).split())]
        tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        size = len(words) + len(words) % 2
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=size, hidden_size=size, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
            max_position_embeddings=256,
        ))  # fmt: skip
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(1.0) if weight.ndim == 1 else weight.zero_()
            layer = model.model.layers[0].self_attn
            for weight in (model.model.embed_tokens, layer.v_proj, layer.o_proj, model.lm_head):
                weight.weight.copy_(torch.eye(size))
        model.save_pretrained(tmp_path / "copier")
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", pad_token="?")
        fast.save_pretrained(tmp_path / "copier")
        return str(tmp_path / "copier")

    return make


@pytest.fixture
def ranker(wide_llama, store):
    scorer = HFScorer(None, wide_llama, ASKED, trust_remote_code=False, cache_megabytes=10)
    scorer.load(store)
    return LanguageModelRanker(scorer, store)


def test_a_window_shorter_than_passage_and_query_is_not_packed(store, tokenizer, tmp_path):
    """The store's own sequences are shorter: they could be packed."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "sliding_window": 100}  # fmt: skip
    torch.manual_seed(0)
    folder = save_random_model(
        MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, tmp_path
    )
    scorer = HFScorer(None, folder, ASKED, trust_remote_code=False, cache_megabytes=0)
    scorer.load(store)
    assert scorer.packs
    ranker, query = LanguageModelRanker(scorer, store), " ".join(["river"] * 100)
    assert not scorer.packs
    passages = np.array([[0, 1, 2]])
    together = ranker.loglik([query], passages)[0]
    alone = [ranker.loglik([query], passages[:, k : k + 1])[0, 0] for k in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize(
    ("system", "parts"),
    [
        ("lm", Reranked("bm25", None, False)),
        ("lm_weighted@run", Reranked("run", None, True)),
        ("lm:hf:org/model", Reranked("bm25", "org/model", False)),
        ("lm_weighted:hf:org/model@hybrid:st:org/other", Reranked("hybrid:st:org/other", "org/model", True)),
        ("run", None),
    ],
)
def test_a_name_has_a_model_and_the_system_that_is_ranked_again(system, parts):
    assert reranked(system) == parts


def test_a_system_depends_on_what_it_ranks_again():
    assert dense_part("lm@hybrid:st:org/model") == "st:org/model"
    assert dense_part("lm_weighted") is None
    assert is_tuned("lm@hybrid_weighted")
    assert not is_tuned("lm@hybrid")
    assert untuned("lm_weighted@hybrid_weighted") == "lm@hybrid"
    assert short_names(["bm25", "lm:hf:/a/b/model@run"])["lm:hf:/a/b/model@run"] == "lm:hf:b/model@run"


def test_the_first_documents_are_replaced_and_the_others_follow():
    first = ranking([[4, 2, 7, 1], [3, -1, -1, -1]], [[9, 8, 7, 6], [5, -np.inf, -np.inf, -np.inf]])
    top = ordered(first.rows_QR[:, :2], np.array([[-8.0, -3.0], [-4.0, -np.inf]]))
    whole = replace_top(first, top)
    assert whole.rows_QR.tolist() == [[2, 4, 7, 1], [3, -1, -1, -1]]
    assert whole.score_QR.tolist() == [[-3, -8, -9, -10], [-4, -np.inf, -np.inf, -np.inf]]


@pytest.mark.parametrize(("weight", "best"), [(0.0, [4, 2, 7]), (0.4, [4, 7, 2]), (1.0, [7, 2, 4])])
def test_a_mixture_is_normalised_over_the_first_documents(weight, best):
    """BM25, normalised: 4 → 1, 2 → .5, 7 → 0. The model: 4 → 0, 2 → .2, 7 → 1. With .4: .6, .38, .4."""
    first = ranking([[4, 2, 7, 1]], [[9, 8, 7, 6]])
    top = ordered(first.rows_QR[:, :3], np.array([[-10.0, -9.0, -5.0]]))
    assert mix_top(first, top, weight, "minmax").rows_QR.tolist() == [[*best, 1]]


def test_documents_are_ranked_by_the_models_own_probabilities(ranker, store, wide_llama):
    """log p(query | passage) computed with transformers alone: one sequence, one forward, one softmax."""
    queries, k = ["document of bada", "kiki lolo"], 4
    first = ranking([[5, 9, 2, 7, 1], [3, 8, 60, 61, 62]], np.zeros((2, 5)))
    top = ranker.rank(queries, first, k)
    model, tokenizer = ranker.scorer.model, ranker.scorer.tokenizer
    passages_QR = ranker.best_passages(queries, first.rows_QR[:, :k])
    expected = np.zeros((2, k))
    for q, query in enumerate(queries):
        for rank, passage in enumerate(passages_QR[q]):
            assert store.passage_documents[passage] == first.rows_QR[q, rank]
            read = store.passage_tokens(passage, 1)[:16].tolist()
            target = tokenizer(query, add_special_tokens=False)["input_ids"]
            asked = tokenizer("\nQuestion: ", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[tokenizer.bos_token_id, *read, *asked, *target]])
            logp = model(input_ids=ids).logits.log_softmax(2)[0]
            expected[q, rank] = sum(
                logp[len(ids[0]) - len(target) + at - 1, token].item() for at, token in enumerate(target)
            )
    assert np.ptp(expected, axis=1).min() > 0.1
    assert top.score_QR == pytest.approx(-np.sort(-expected, axis=1), abs=1e-3)
    assert (top.rows_QR == np.take_along_axis(first.rows_QR[:, :k], np.argsort(-expected, 1), 1)).all()


def test_a_model_that_copies_finds_the_passage_with_most_of_the_querys_words(copier, tmp_path):
    """Two of four words are red in document 2, one in 0, none in 1. BM25's order was 1, 0, 2, 3."""
    texts = ["red blue green gold", "blue blue green gold", "red red green gold", "gold gold gold gold"]
    scorer = HFScorer(None, copier(texts), SCORING | {"template": ["{passage}", "{context}"]}, False, 0)
    store = word_store(tmp_path, texts)
    scorer.load(store)
    top = LanguageModelRanker(scorer, store).rank(["red"], ranking([[1, 0, 2, 3]], [[4, 3, 2, 1]]), 3)
    assert top.rows_QR.tolist() == [[2, 0, 1]]


def test_pairs_are_scored_once(ranker, wide_llama, store, monkeypatch):
    """A second ranker finds them on disk, also for other numbers of documents and other queries beside them."""
    queries, first = ["some words", "other words"], ranking([[5, 9, 2], [3, 8, 6]], np.zeros((2, 3)))
    once = ranker.rank(queries, first, 2)
    again = HFScorer(None, wide_llama, ASKED, trust_remote_code=False, cache_megabytes=10)
    again.load(store)
    more = LanguageModelRanker(again, store).rank(queries[1:], ranking([[3, 8, 6]], np.zeros((1, 3))), 3)
    assert again.pairs_scored == 1
    assert set(once.score_QR[1].tolist()) < set(more.score_QR[0].tolist())


def test_the_passage_with_the_querys_words_is_read(ranker, store):
    """Each document of the fixture ends with its own words, which are its query: the last passages hold them."""
    document = 11
    words = store.texts[document].split()[-2:]
    passages = np.flatnonzero(store.passage_documents == document)
    found = ranker.best_passages([" ".join(words)], np.array([[document, -1]]))[0]
    assert found[0] in passages[1:]
    assert found[1] == -1
    nothing_in_common = ranker.best_passages(["zzz"], np.array([[document]]))
    assert nothing_in_common.tolist() == [[passages[0]]]


def test_a_model_with_few_positions_is_refused(ranker):
    ranker.scorer.most_tokens = 100
    with pytest.raises(ConfigError, match=r"lm\.scoring\.max_passage_tokens=16: .* but the model reads 100; lower it"):
        LanguageModelRanker(ranker.scorer, ranker.store)


def test_the_table_has_rows_of_the_language_model(config, wide_llama, tmp_path, capsys):
    evaluate(config(f"systems=[bm25,run,lm,lm_weighted,lm@run,lm:hf:{wide_llama},lm_weighted:hf:{wide_llama}@hybrid]",
                    "lm.k=5", *SMALL))  # fmt: skip
    found = results(tmp_path)
    assert len(found["systems"]) == 7
    flat = found["flat"]
    assert flat["lm/recall_at_100"] == flat["bm25/recall_at_100"]  # the same documents in another order
    assert flat["lm@run/recall_at_100"] == flat["run/recall_at_100"]
    assert flat["lm@run/success_at_5"] == flat["run/success_at_5"]  # also within the first 5
    assert flat["lm@run/mrr_at_10"] != flat["run/mrr_at_10"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "lm_weighted: weight" in printed
    assert "on the language model's scores, tuned on 30 queries of split dev" in printed
    assert "is no better than bm25" in printed or "of the way from bm25" in printed
    assert len(list((tmp_path / "evaluation/runs").glob("lm*.run"))) == 5


def test_every_run_is_ranked_again_by_the_same_model(config, world, tmp_path):
    evaluate(config(f"run={world / 'logs/sweep'}", "systems=[bm25,run,lm,lm@run]", *SMALL))
    rows = set(results(tmp_path)["systems"])
    assert {"lm", "lm@run seed=0", "lm@run seed=1", "lm@run"} <= rows
    assert "lm seed=0" not in rows


def test_a_scratch_scorer_keeps_the_prompt_that_it_was_trained_with(config, world, tmp_path):
    """Other scorers of runs are asked with the prompt of section lm. Both are scored as this section says."""
    settings = settings_of(config("systems=[bm25,lm]", "lm.scoring.dtype=float16"))
    run = tmp_path / "run"
    shutil.copytree(world / "logs/sweep/0", run)
    cfg = OmegaConf.load(run / "config.yaml")
    assert scorer_of_run(run, settings)[0].scoring.template == list(settings.lm.scoring["template"])
    cfg.scorer = composed("train", "scorer=scratch", "scorer.vocabulary=400", f"paths.data={tmp_path}").scorer
    OmegaConf.save(cfg, run / "config.yaml")
    scoring = scorer_of_run(run, settings)[0].scoring
    assert scoring.template == ["{bos}", "{passage}", "{sep}", "{context}"]
    assert scoring.dtype == "float16"


def test_no_run_is_needed_with_a_published_model(config, beir, wide_llama, tmp_path, capsys):
    evaluate(config("corpus=beir", f"corpus.path={beir}", "run=nowhere", f"systems=[bm25,lm:hf:{wide_llama}]",
                    "max_queries=7", *SMALL))  # fmt: skip
    assert results(tmp_path)["queries"] == 7
    assert "7 queries (drawn from 80) of split test" in " ".join(capsys.readouterr().out.split())
    chosen = results(tmp_path)["flat"]
    evaluate(config("corpus=beir", f"corpus.path={beir}", "run=nowhere", "systems=[bm25,lm]", f"lm.name={wide_llama}",
                    "max_queries=7", *SMALL))  # fmt: skip
    assert results(tmp_path)["flat"]["lm/ndcg_at_10"] == list(chosen.values())[-7]


def test_a_mistake_is_reported_in_one_line(config, beir, tokenizer, tmp_path):
    other = ["corpus=beir", f"corpus.path={beir}"]
    bert = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    encoder_only = save_random_model(BertForMaskedLM(bert), tokenizer, tmp_path / "bert")
    for overrides, message in (
        (["systems=[bm25,lmm]"], "systems=lmm: no such system; did you mean lm"),
        (["systems=[bm25,lm_wieghted]"], "did you mean lm_weighted"),
        (["systems=[bm25,lm:org/model]"], "systems=lm:org/model: the language model is written lm:hf:NAME"),
        (["systems=[bm25,'lm:hf:']"], "the language model is written lm:hf:NAME"),
        (["systems=[bm25,lm@]"], "write a system after @, e.g. lm@run"),
        (["systems=[bm25,lm@runn]"], "systems=runn: no such system; did you mean run"),
        (["systems=[bm25,lm@lm]"], "systems=lm@lm: a language model ranks another kind of system again"),
        (["systems=[bm25,hybrid:lm@run]"], "systems=hybrid:lm@run: fuses BM25 with a dense system"),
        (["lm.k=null"], "lm.k=null: at least 2 documents"),
        (["lm.k=1"], "lm.k=1: at least 2 documents"),
        (["max_queries=0"], "max_queries=0: null, or a whole number, at least 1"),
        ([*other, "systems=[bm25,lm_weighted]"], "split dev_split=dev, but corpus beir only has test; use lm instead"),
        ([*other, "systems=[bm25,lm:hf:nowhere/nothing]"], "nor, offline"),
        ([*other, f"systems=[bm25,lm:hf:{encoder_only}]"], "reads a text in both directions"),
        (["windows=5"], "windows compares BM25 with one language model: choose"),
        (["windows=5", "systems=[bm25,lm_weighted]"], "windows compares BM25 with one language model: choose"),
        (["windows=0", "systems=[bm25,lm]"], "windows=0: null, or a whole number, at least 1"),
        (["windows=many", "systems=[bm25,lm]"], "windows=many: null, or a whole number, at least 1"),
    ):
        with pytest.raises(Exception, match=message):
            evaluate(config(*overrides))


@pytest.mark.parametrize(
    ("student", "share"),
    [
        (0.562, "run (0.5620) has reached 62% of the way from {ends}."),
        (0.49, "run (0.4900) has reached -10% of the way from {ends}: it is worse than bm25."),
        (0.65, "run (0.6500) has reached 150% of the way from {ends}: it is better than its teacher."),
    ],
)
def test_the_way_to_the_best_teacher(student, share):
    means = {"bm25": 0.5, "run": student, "lm": 0.6, "lm_weighted": 0.3}
    found = SimpleNamespace(rows=means, metric="ndcg_at_10", mean=lambda row, metric: means[row])
    ends = "bm25 (0.5000) to its teacher lm (0.6000) in nDCG@10"
    assert way_to_teacher(found, ["run"], ["lm", "lm_weighted"], "bm25") == [share.format(ends=ends)]
    no_better = way_to_teacher(found, ["run"], ["lm_weighted"], "bm25")
    assert no_better[0].startswith("lm_weighted (0.3000) is no better than bm25 (0.5000) in nDCG@10: ")
    assert way_to_teacher(found, [], ["lm"], "bm25") == []


def test_windows_are_held_out_of_their_candidates(store):
    windows = draw_windows(store, 20, 5, seed=0)
    assert len(windows.judgements) == 20
    for text, name, grades, rows, ids in zip(
        windows.judgements.queries, windows.judgements.query_ids, windows.judgements.grades, windows.by_bm25.rows_QR,
        windows.passages_QR, strict=True,
    ):  # fmt: skip
        assert len(set(rows.tolist())) == 5
        document, own = next(iter(grades)), None
        assert store.passage_documents[ids].tolist() == rows.tolist()
        own = int(ids[rows.tolist().index(document)])
        first = int(np.flatnonzero(store.passage_documents == document)[0])
        assert text in " ".join(store.passage_text(first + int(name.split(":")[1])).split())
        assert own != first + int(name.split(":")[1])
    again, other = draw_windows(store, 20, 5, seed=0), draw_windows(store, 20, 5, seed=1)
    assert again.judgements.queries == windows.judgements.queries
    assert other.judgements.queries != windows.judgements.queries


def test_without_labels_the_own_document_is_looked_for(config, copier, tmp_path, capsys):
    """Each document has words of its own in both of its passages; `shared` is in all of them."""
    folder = copier([" ".join([f"w{n}x{at}" for at in range(6)] + ["shared"]) for n in range(12)])
    texts = [" ".join([*(f"w{n}x{at}" for at in range(6)), "shared", "shared"] * 2) for n in range(12)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": f"d{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    evaluate(config("corpus=jsonl", f"corpus.path={corpus}", f"paths.data={tmp_path / 'data'}", "windows=10", "lm.k=4",
                    f"systems=[bm25,lm:hf:{folder}]", *SMALL, "lm.scoring.max_passage_tokens=8"))  # fmt: skip
    found = results(tmp_path)
    assert (found["windows"], found["candidates"]) == (10, 4)
    assert [values["success_at_1"]["mean"] for values in found["systems"].values()] == [1.0, 1.0]
    assert len((tmp_path / "evaluation/per_query.jsonl").read_text().splitlines()) == 2 * 10
    printed = " ".join(capsys.readouterr().out.split())
    assert "knows more than chance about this corpus" in printed
    assert "chance 25.0%" in printed
    assert "chance 0.521" in printed  # (1 + 1/2 + 1/3 + 1/4) / 4
    assert "mean rank 1.0 of 4 (bm25 1.0; chance 2.5)" in printed
