"""Questions that the language model writes. Run: pytest tests/scorers/test_questions.py"""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from tests.commands.test_train import fit
from tests.random_models import SCORING, save_random_model
from transformers import LlamaConfig, LlamaForCausalLM

import dream
from dream.callbacks import final_report
from dream.candidates.exclusion import excluded_ranges
from dream.commands.train import train
from dream.evaluation.fusion import choose_weight, hybrid
from dream.evaluation.labelled_queries import HeldOutQuestions, LabelledQueries
from dream.evaluation.metrics import Ranking
from dream.indexes.bm25 import BM25Index
from dream.scorers import questions as asking
from dream.scorers.attention.heads import HeadFinder, asked_windows, shuffled_neighbours
from dream.scorers.hf import HFScorer
from dream.store.questions import HELD_OUT, Questions
from dream.store.store import ENCODER, SCORER, Store
from dream.utils.atomic_io import read_checked_json
from dream.utils.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes)
    torch.manual_seed(0)
    return save_random_model(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture
def asked(store):
    """A store of its own, so that questions are not added to the shared one."""
    return Store(store.path, target="context")


@pytest.fixture
def scorer(folder, asked):
    scorer = HFScorer(None, folder, SCORING, False, 0)
    scorer.load(asked)
    return scorer


@pytest.fixture(autouse=True)
def one_word_is_enough(monkeypatch):
    """The tiny model writes no blanks."""
    monkeypatch.setattr(asking, "FEWEST_WORDS", 1)


@pytest.fixture
def written(scorer, asked, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "cache_folder", lambda self, kind: tmp_path / kind)
    return lambda count: asking.open_or_write(scorer, asked, (tokenizer, tokenizer), count)


@torch.no_grad()
def by_hand(scorer, store, passage, contrast=asking.CONTRAST) -> str:
    """The continuation of the prompt, one token at a time, without caches and batches."""
    head = scorer.tokenizer(asking.HEAD, add_special_tokens=False)["input_ids"]
    tail = scorer.tokenizer(asking.TAIL, add_special_tokens=False)["input_ids"]
    vocabulary, ends = scorer.tokenizer.get_vocab(), asking._ends_of_line(scorer.tokenizer)
    code = [number for token, number in vocabulary.items() if set(token) & set(asking.CODE) and number not in ends]
    new: list[int] = []

    def log_probabilities(passage_tokens: list[int]) -> torch.Tensor:
        text = torch.tensor([[*head, *passage_tokens, *tail, *new]])
        return scorer.model(text).logits[0, -1].log_softmax(dim=0)

    while len(new) < asking.MOST_TOKENS:
        given, alone = log_probabilities(scorer.passage(store, passage).tolist()), log_probabilities([])
        given[code] = -torch.inf
        score = given + contrast * (given - alone)
        score[given.exp() < given.exp().max() / 10] = -torch.inf
        new.append(int(score.argmax()))
        if new[-1] in ends:
            break
    line = scorer.tokenizer.decode(new, skip_special_tokens=True).partition("\n")[0]
    return line[: line.find("?") + 1 or None].strip()


def test_questions_have_the_words_that_the_passage_makes_likely(written, scorer, asked):
    questions = written(12)
    assert 0 < len(questions) <= 12
    assert len(set(questions.passages_Q.tolist())) == len(questions)
    passages = questions.passages_Q.tolist()
    for text, passage in zip(questions.texts, passages, strict=True):
        assert text == by_hand(scorer, asked, passage)
    assert questions.texts != [by_hand(scorer, asked, passage, contrast=0) for passage in passages]


@pytest.mark.parametrize(
    ("text", "question"),
    [(" what is it? It is\n\nPassage", "what is it?"), (" what it is\nwhat else?", "what it is"), ("", "")],
)
def test_a_question_ends_at_its_mark_or_with_its_line(text, question):
    assert asking._question(text) == question


def test_an_interrupted_writing_goes_on_and_the_result_is_cached(written, scorer, monkeypatch, tmp_path):
    monkeypatch.setitem(asking.BATCHES, "cpu", 4)
    whole = written(10).texts
    for done in (tmp_path / "questions").iterdir():
        done.rename(tmp_path / f"{done.name}.whole")
    calls = itertools.count()

    def stops_after_one(*arguments, write=asking._continue):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(asking, "_continue", stops_after_one)
        with pytest.raises(KeyboardInterrupt):
            written(10)
    (left,) = (tmp_path / "questions").iterdir()
    assert len((left / "written.jsonl").read_text().splitlines()) == 4
    with (left / "written.jsonl").open("a") as file:
        file.write('{"passage": 3, "quest')  # a kill while a line was written
    assert written(10).texts == whole
    monkeypatch.setattr(asking, "_continue", lambda *_: pytest.fail("the cached questions should be used"))
    assert written(10).texts == whole


def test_a_gpu_that_is_too_small_gets_fewer_passages_at_once(written, monkeypatch):
    write, sizes = asking._continue, []

    def fits_two(scorer, passages):
        sizes.append(len(passages))
        if len(passages) > 2:
            raise torch.OutOfMemoryError
        return write(scorer, passages)

    monkeypatch.setattr(asking, "_continue", fits_two)
    questions = written(9)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    assert len(questions.texts) + len(questions.held_out) == 9


def test_another_count_takes_over_what_is_written(written, monkeypatch):
    some, write, asked = written(8), asking._continue, []
    monkeypatch.setattr(asking, "_continue", lambda *inputs: asked.extend(inputs[1]) or write(*inputs))
    more = written(12)
    assert len(asked) == 4
    texts = [*some.texts, *(text for text, _ in some.held_out)]
    assert [*more.texts, *(text for text, _ in more.held_out)][: len(texts)] == texts
    assert written(6).texts == texts[:5]  # no more is asked
    assert len(asked) == 4


def test_other_questions_of_the_same_name_have_another_hash(written):
    """Otherwise, questions that another device writes would get the cached log-likelihoods of these."""
    questions = written(12)
    file = questions.path / asking.TEXTS
    file.write_text(file.read_text().replace('"question": "', '"question": "another ', 1))
    assert Questions(questions.path).hash != questions.hash


def test_a_question_is_a_window_without_overlap(written, scorer, asked):
    pieces = len(asked.windows)
    scope = asked.scoring_hash
    asked.ask(written(12))
    assert asked.scoring_hash != scope
    ids = np.array([3, pieces, pieces + 1])
    rows = asked.window_rows(ids)
    passages = asked.questions.passages_Q[:2]
    assert rows["document"].tolist() == [asked.windows["document"][3], *asked.passages["document"][passages]]
    first, end = excluded_ranges(ids, asked, "auto")
    assert (end - first).tolist()[1:] == [0, 0]
    assert end[0] > first[0]
    assert asked.window_text(pieces) == (asked.questions.texts[0], "")
    assert asked.scored_counts(ids)[1] == len(asked.questions.tokens(0, SCORER))
    start, stop = asked.passages["tokens"][passages[0], ENCODER]
    assert np.array_equal(asked.continuation(pieces, stop - start), asked.tokens[ENCODER][start:stop])
    loglik = scorer.loglik(asked, torch.tensor([pieces]), torch.tensor([[5, -1]]))
    assert torch.isfinite(loglik).all()


def test_runs_score_questions_and_resume_exactly(config, folder):
    overrides = ["data.questions=12", "data.target=context", f"scorer.name={folder}", "logger=csv",
                 "candidates.scored_windows=2", "trainer.max_steps=4"]  # fmt: skip
    whole, weights = fit(config("whole", *overrides))
    assert sorted(whole.steps) == [1, 2, 3, 4]
    (checkpoint,) = Path(config("whole", *overrides).paths.run).glob("every/*step=2*")
    rest, resumed = fit(config("rest", *overrides), str(checkpoint))
    assert rest.steps == {step: whole.steps[step] for step in (3, 4)}
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_without_continuations_the_passage_of_a_question_is_its_first_candidate(config, folder, written):
    asked = set(written(12).passages_Q.tolist())
    overrides = ["data.questions=12", "data.target=context", f"scorer.name={folder}", "candidates.scored_windows=2"]
    first = {}
    for share in (0, 0.5):
        recorded, _ = fit(config(f"run{share}", *overrides, f"objective.continuation={share}", "trainer.max_steps=2"))
        first[share] = {ids[0] for _, candidates in recorded.steps.values() for ids in candidates}
    assert first[0] <= asked
    assert not first[0.5] <= asked


def test_own_passages_as_targets_learn_and_resume_exactly(config, folder):
    overrides = ["data.questions=12", "data.target=context", f"scorer.name={folder}", "candidates.scored_windows=2",
                 "objective=joint_posterior", "objective.target=own_passage", "objective.continuation=0", "logger=csv",
                 "trainer.max_steps=4", "trainer.log_every_n_steps=1"]  # fmt: skip
    whole, weights = fit(config("whole", *overrides))
    with (Path(config("whole", *overrides).paths.run) / "csv/metrics.csv").open() as file:
        shares = [float(row["train/window_weight"]) for row in csv.DictReader(file) if row["train/window_weight"]]
    assert set(shares) <= {0, 0.5, 1}  # of two questions of a step
    assert [loss > 0 for _, (loss, _) in sorted(whole.steps.items())] == [share > 0 for share in shares]
    assert any(shares)
    (checkpoint,) = Path(config("whole", *overrides).paths.run).glob("every/*step=2*")
    rest, resumed = fit(config("rest", *overrides), str(checkpoint))
    assert rest.steps == {step: whole.steps[step] for step in (3, 4)}
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    with pytest.raises(ConfigError, match=r"^objective\.target=own_passage: needs questions"):
        fit(config("refused", *(each for each in overrides if "questions" not in each)))


def test_impossible_settings_are_refused(written, scorer, config):
    scorer.most_tokens = 40
    with pytest.raises(ConfigError, match=r"data\.questions=12: the prompt that asks"):
        written(12)
    with pytest.raises(InstantiationException, match=r"data\.questions=12: set data\.target=context"):
        fit(config("run", "data.questions=12"))


def test_an_objective_without_candidates_refuses_questions(config):
    """It would train on spans, because nothing asks the language model for questions."""
    with pytest.raises(ConfigError, match=r"^data\.questions=12: this objective does not use .*data\.questions=null$"):
        fit(config("run", "data.questions=12", "data.target=context", "objective=info_nce"))


def test_one_question_of_six_is_held_out(written):
    questions = written(20)
    lines = (questions.path / "questions.jsonl").read_text().splitlines()
    rows = [(row["question"], row["passage"]) for row in map(json.loads, lines)]
    trained = list(zip(questions.texts, questions.passages_Q.tolist(), strict=True))
    assert trained + questions.held_out == rows
    assert len(questions.held_out) == len(rows) // HELD_OUT > 0
    assert len(questions) == len(questions.counts(SCORER)) == len(trained)


def test_heads_are_ranked_on_questions(written, scorer, asked):
    """Their candidates are BM25's, also from the question's own document, and the ranking is another one."""
    finder = HeadFinder(3, 8, 4, -100.0, "window", "N/A", 0)
    pieces = finder.open_or_find(scorer, asked)
    asked.ask(written(12))
    index = BM25Index.open_or_build(asked)
    windows = asked_windows(asked, 0, 8)
    assert sorted(windows - len(asked.windows)) == sorted(set(windows - len(asked.windows)))
    assert all(0 <= window - len(asked.windows) < len(asked.questions) for window in windows)
    found_SK = shuffled_neighbours(asked, index, windows, 4, 0)
    best_S = index.search([asked.window_text(window)[0] for window in windows.tolist()], 1)[1][:, 0]
    assert all(best in found_K for best, found_K in zip(best_S, found_SK, strict=True) if best >= 0)
    ranked = finder.open_or_find(scorer, asked)
    assert ranked.folder != pieces.folder
    assert ranked.rows != pieces.rows


@pytest.mark.parametrize("split", ["dev", "none"])
def test_held_out_questions_choose_the_weight_of_the_hybrid(config, folder, capsys, monkeypatch, split):
    """With labels, the table is about them; without, about the held-out questions."""
    monkeypatch.setattr(final_report, "LEAST_QUESTIONS", 2)
    cfg = config("run", "data.questions=60", "data.target=context", f"scorer.name={folder}",
                 "candidates.scored_windows=2", "trainer.max_steps=3", f"evaluation.report_split={split}")  # fmt: skip
    train(cfg)
    summary = read_checked_json(Path(cfg.paths.run) / "summary.json")
    printed = capsys.readouterr().out
    assert ("held-out questions of the language model" in printed) == (split == "none")
    retriever = dream.load(cfg.paths.run)
    weight = retriever.run.hybrid_weight
    assert weight == summary["hybrid/weight"]
    store = Store(retriever.store.path, "english", "context")
    (questions,) = (Path(cfg.paths.data) / "questions").iterdir()
    store.ask(Questions(questions))
    held_out = LabelledQueries(HeldOutQuestions(store), store, "any")
    lexical = held_out.by_bm25(BM25Index.open_or_build(store, "document"))
    dense = held_out.by_encoder(retriever.encoder, retriever.run.index)
    assert weight == choose_weight(lexical, dense, held_out.judgements)
    if split == "none":
        expected = held_out.score(hybrid(lexical, dense, weight))["ndcg_at_10"]
        assert summary["hybrid/ndcg_at_10"] == pytest.approx(expected)
    text = held_out.queries[0]
    fused = hybrid(*(Ranking(r.rows_QR[:1], r.score_QR[:1]) for r in (lexical, dense)), weight)
    found = [hit.id for hit in retriever.search(text, k=5, mode="hybrid")]
    assert found == [store.document_names[row] for row in fused.rows_QR[0, :5]]


def test_padding_after_the_end_is_not_read_as_text():
    """Token 0 of GPT-2 is "!"."""
    assert asking._up_to_end([5, 6, 9, 0, 0], [9, 8]) == [5, 6, 9]
    assert asking._up_to_end([5, 6], [9]) == [5, 6]
