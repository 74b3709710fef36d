"""A scorer trained from nothing: cached, resumed, reproducible. Run: pytest tests/scorers/test_scratch.py"""

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
TRAINING = {
    "max_steps": 6,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_fraction": 0.2,
    "weight_decay": 0.1,
    "shares": {"verbatim": 0.25, "neighbour": 0.5, "random": 0.2, "null": 0.05},
    "span_tokens": [4, 6],
    "several": {"share": 0.3, "passages": 3},
    "compile": False,
    "checkpoint_every_n_steps": 2,
    "gain_windows": 8,
}
TEMPLATE = ["{bos}", "{passage}", "{sep}", "{context}"]


def scratch(corpus, folder, seed=0, architecture=None, **training):
    return ScratchScorer(
        corpus=corpus,
        tokenizer={"vocabulary": 400, "sample_megabytes": 1},
        architecture=architecture or {"model_type": "llama", **SMALL},
        training=TRAINING | training,
        scoring={
            "template": TEMPLATE,
            "max_passage_tokens": 24,
            "tokens_per_forward": "auto",
            "dtype": "float32",
            "compile": False,
        },
        data_dir=str(folder),
        seed=seed,
        cache=True,
        cache_dir=str(folder / "loglik"),
        cache_megabytes=10,
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

    monkeypatch.setattr("dream.scorers.pretraining.scratch.train", lambda *_: pytest.fail("trained a second time"))
    again = scratch(corpus, tmp_path, compile="auto")
    again.load(store)
    assert again.fingerprint == scorer.fingerprint
    ids = torch.tensor([0, 1]), torch.tensor([[3, -1], [4, 5]])
    torch.testing.assert_close(again.loglik(store, *ids), scorer.loglik(store, *ids))


def test_every_setting_that_matters_has_its_own_folder(corpus, tmp_path, store):
    variants = [scratch(corpus, tmp_path), scratch(corpus, tmp_path, seed=1), scratch(corpus, tmp_path, max_steps=7)]
    assert len({variant.folder(store) for variant in variants}) == 3
    assert variants[0].folder(store) == scratch(corpus, tmp_path, checkpoint_every_n_steps=5).folder(store)


def test_an_interrupted_training_goes_on_to_the_same_weights(store, tokenizer, tmp_path):
    index = BM25Index.open_or_build(store, tmp_path)
    settings = Training(**TRAINING)

    def run(folder, batches_until_crash=None):
        class Crashing(CopyCurriculum):
            def batch(self, position):
                if batches_until_crash is not None and position >= 4 * batches_until_crash:
                    raise RuntimeError("power cut")
                return super().batch(position)

        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SMALL))
        prompt = Prompt(TEMPLATE, tokenizer)
        train(
            model,
            Crashing(store, index, prompt, 24, settings.shares, settings.span_tokens, settings.several, 6, 4, seed=0),
            settings,
            folder,
        )
        return model.state_dict()

    straight = run(tmp_path / "straight")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "broken", batches_until_crash=5)
    resumed = run(tmp_path / "broken")
    for name, weight in straight.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0)


def test_an_unknown_architecture_names_its_key(corpus, tmp_path, store):
    scorer = scratch(corpus, tmp_path, architecture={"model_type": "no_such_model"})
    with pytest.raises(ConfigError, match=r"^scorer.architecture="):
        scorer.load(store)
