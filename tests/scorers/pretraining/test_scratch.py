"""A scorer trained from random weights: cached, resumed, reproducible.

Run: pytest tests/scorers/pretraining/test_scratch.py
"""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dream.indexes.bm25 import BM25Index
from dream.scorers.pretraining.curriculum import CopyCurriculum
from dream.scorers.pretraining.module import Training, train
from dream.scorers.pretraining.scratch import ScratchScorer
from dream.scorers.prompt import Prompt
from dream.store.build import open_or_build
from dream.utils.errors import ConfigError

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
TRAINING = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-2, "multi_passage_fraction": 0.3}
SHARES = {"verbatim": 0.25, "neighbour": 0.5, "random": 0.2, "null": 0.05}
SCORING = {
    "template": ["{bos}", "{passage}", "{sep}", "{context}"],
    "max_passage_tokens": 24,
    "tokens_per_forward": "auto",
    "dtype": "float32",
    "compile": False,
}


def scratch(corpus, folder, training=None, scoring=None, **changes):
    settings = {"vocabulary": 400, "width": 32, "layers": 2, "seed": 0, "cache_megabytes": 10} | changes
    return ScratchScorer(
        corpus=corpus,
        training=TRAINING | (training or {}),
        scoring=SCORING | (scoring or {}),
        data_dir=str(folder),
        **settings,
    )


def own_store(corpus, scorer, folder):
    lengths = {"passage_tokens": 24, "context_tokens": 12, "min_context_tokens": 6, "target_tokens": 8}
    return open_or_build(folder / "stores", corpus, scorer.tokenizer, scorer.tokenizer, **lengths)


def test_trained_once_then_read_from_the_cache(corpus, tmp_path, monkeypatch):
    scorer = scratch(corpus, tmp_path)
    store = own_store(corpus, scorer, tmp_path)
    scorer.load(store)
    folder = scorer.folder(store)
    assert {"model.safetensors", "tokenizer.json", "gain.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.parent.glob("*.training"))
    assert json.loads((folder / "gain.json").read_text())["random_loglik"] < 0
    assert scorer.token_embeddings().shape == (len(scorer.tokenizer), 32)

    monkeypatch.setattr("dream.scorers.pretraining.scratch.train", lambda *_, **__: pytest.fail("trained again"))
    again = scratch(corpus, tmp_path)
    again.load(store)
    assert again.fingerprint == scorer.fingerprint
    ids = torch.tensor([0, 1]), torch.tensor([[3, -1], [4, 5]])
    torch.testing.assert_close(again.loglik(store, *ids), scorer.loglik(store, *ids))


def test_each_setting_that_matters_has_its_own_folder(corpus, tmp_path, store):
    first = scratch(corpus, tmp_path).folder(store)
    variants = [
        scratch(corpus, tmp_path, seed=1),
        scratch(corpus, tmp_path, width=64),
        scratch(corpus, tmp_path, layers=4),
        scratch(corpus, tmp_path, scoring={"max_passage_tokens": 12}),
        scratch(corpus, tmp_path, scoring={"template": ["{passage}", "{sep}", "{context}"]}),
        *(scratch(corpus, tmp_path, training={key: value / 2 if key != "max_steps" else 7})
          for key, value in TRAINING.items()),
    ]  # fmt: skip
    assert len({first, *(variant.folder(store) for variant in variants)}) == 1 + len(variants)
    same = scratch(corpus, tmp_path, scoring={"tokens_per_forward": 100, "dtype": "bfloat16"}, cache_megabytes=0)
    assert same.folder(store) == first


def test_an_interrupted_training_resumes_to_the_same_weights(store, tokenizer, tmp_path):
    index = BM25Index.open_or_build(store)
    settings = Training(**TRAINING)

    def run(folder, batches_until_crash=None):
        class Crashing(CopyCurriculum):
            def batch(self, position):
                if batches_until_crash is not None and position >= 4 * batches_until_crash:
                    raise RuntimeError("power cut")
                return super().batch(position)

        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SMALL))
        prompt = Prompt(SCORING["template"], tokenizer)
        curriculum = Crashing(store, index, prompt, 24, SHARES, (4, 6), 0.3, 3, settings.max_steps, 4, seed=0)
        train(model, curriculum, settings, folder, compiled=False, device=torch.device("cpu"))
        return model.state_dict()

    straight = run(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "broken", batches_until_crash=5)
    resumed = run(tmp_path / "broken")
    for name, weight in straight.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)


def test_a_damaged_checkpoint_is_reported_and_the_training_starts_again(corpus, tmp_path, capsys):
    scorer = scratch(corpus, tmp_path)
    store = own_store(corpus, scorer, tmp_path)
    checkpoint = scorer.folder(store).with_name(f"{scorer.folder(store).name}.training") / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"not a checkpoint")
    scorer.load(store)
    assert f"{checkpoint}: damaged" in capsys.readouterr().out
    assert (scorer.folder(store) / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 1}, "scorer.layers=1"),
        ({"width": 96}, "scorer.width=96"),
        ({"width": 31}, "scorer.width=31"),
        ({"training": {"max_steps": 0}}, "scorer.training.max_steps=0"),
        ({"training": {"learning_rate": 0}}, "scorer.training.learning_rate=0"),
        ({"cache_megabytes": -1}, "scorer.cache_megabytes=-1"),
    ],
)
def test_bad_values_name_their_key(corpus, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        scratch(corpus, tmp_path, **changes)
