"""Training, scoring and embedding on a CUDA GPU. Without a GPU, all tests are skipped. Run: pytest tests/test_gpu.py"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.commands.test_train import EVERY_OBJECTIVE, fit
from tests.encoders.test_hf import make
from tests.encoders.test_lora import FAMILIES
from tests.encoders.test_st_folder import OWN
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.random_models import SCORING, save_random_model
from tests.test_cached_gradients import TEXTS
from tests.test_cached_gradients import bert as bert_with_dropout

from dream.commands.train import train
from dream.encoders import chunks
from dream.encoders.hf import HFEncoder
from dream.evaluation.searcher import Searcher
from dream.indexes.embedding import embed_corpus, open_shard
from dream.scorers import questions as asking
from dream.scorers.hf import HFScorer
from dream.store.ragged import pad_tokens

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU = ["trainer=gpu", "trainer.accelerator=gpu"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    tokenizer = KINDS["byte_level"]()
    return save_random_model(FAMILIES["bert"](len(tokenizer)), tokenizer, tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("objective", [*EVERY_OBJECTIVE, "info_nce"])
def test_every_objective_trains_in_bf16(config, objective, tmp_path):
    train(config("run", *GPU, f"objective={objective}", *EVERY_OBJECTIVE.get(objective, [])))
    summary = json.loads((tmp_path / "logs" / "run" / "summary.json").read_text())
    assert summary["train/loss"] > 0
    assert summary["trained/recall_at_100"] > 0
    assert Searcher(tmp_path / "logs" / "run", device="cuda").search("Document words", 3)


@pytest.mark.parametrize("options", [
    ["index=exact"],
    ["callbacks.index_refresh.mode=background", "callbacks.evaluation.every_n_steps=0"],
    ["trainer.precision=16-mixed"],
    ["data.workers=2"],
])  # fmt: skip
def test_other_parts_run(config, options, tmp_path):
    train(config("run", *GPU, *options))
    assert (tmp_path / "logs" / "run" / "summary.json").exists()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["static", "hf"])
def test_a_resumed_run_repeats_losses_and_candidates(config, bert, kind, precision):
    options = [*GPU, f"trainer.precision={precision}"]
    options += ["encoder=hf", f"encoder.name={bert}", "encoder.pooling=mean"] if kind == "hf" else []
    whole, final = fit(config("whole", *options))
    checkpoint = next(Path(config("whole").paths.run).glob("every/*step=2.ckpt"))
    resumed, weights = fit(config("resumed", *options), str(checkpoint))
    for step, (loss, candidates) in resumed.steps.items():
        assert loss == pytest.approx(whole.steps[step][0], rel=1e-4)
        assert candidates == whole.steps[step][1]
    for name, weight in weights.items():
        torch.testing.assert_close(weight, final[name], rtol=1e-3, atol=1e-4)


def test_a_run_resumed_after_its_last_step_finishes(config, tmp_path):
    """Its index is older than its last step, so the corpus is embedded after training."""
    options = [*GPU, "callbacks.index_refresh.every_n_steps=0", "callbacks.evaluation=null"]
    options += ["callbacks.best_checkpoint=null"]
    fit(config("run", *options))
    checkpoint = next(Path(config("run").paths.run).glob("every/*step=6.ckpt"))
    train(config("resumed", *options, f"ckpt='{checkpoint}'"))
    assert (tmp_path / "logs" / "resumed" / "summary.json").exists()


def test_cached_gradients_repeat_dropout(tmp_path):
    encoder = make(bert_with_dropout(tmp_path / "bert", dropout=0.2), chunk=4).to("cuda")

    def gradient() -> torch.Tensor:
        encoder.zero_grad()
        torch.manual_seed(3)
        embedding_BD = encoder(pad_tokens(TEXTS, 0).to("cuda"), "passage")
        torch.logsumexp(embedding_BD @ embedding_BD.T / 0.05, dim=1).mean().backward()
        return torch.cat([weight.grad.flatten() for weight in encoder.parameters()])

    cached = gradient()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "checkpoint", lambda run, *tensors, use_reentrant: run(*tensors))
        kept = gradient()
    torch.testing.assert_close(cached, kept, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_log_likelihoods_are_those_of_the_cpu(store, llama_folder, dtype, tolerance, compiles):
    def loglik(device: str, dtype: str, compiles: bool) -> torch.Tensor:
        scorer = HFScorer(None, str(llama_folder), SCORING | {"dtype": dtype, "compile": compiles}, False, 0)
        scorer.to(device).load(store)
        windows_B, candidates_BK = torch.arange(6), torch.arange(48).view(6, 8)
        return scorer.loglik(store, windows_B.to(device), candidates_BK.to(device)).cpu()

    expected_BK = loglik("cpu", "float32", False)
    torch.testing.assert_close(loglik("cuda", dtype, compiles), expected_BK, rtol=tolerance, atol=tolerance)


def test_a_language_model_that_is_loaded_on_a_gpu_writes_questions_there(store, llama_folder):
    scorer = HFScorer(None, str(llama_folder), SCORING, False, 0)
    scorer.to("cuda").load(store)
    assert scorer.model.device.type == "cuda"
    assert len(asking._continue(scorer, [np.arange(5), np.arange(9)])) == 2


@pytest.mark.parametrize(("dtype", "lowest"), [("float32", 0.9999), ("bfloat16", 0.99)])
def test_embeddings_are_those_of_the_cpu(store, llama_folder, tmp_path, dtype, lowest):
    rows = {}
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        folder = tmp_path / device
        folder.mkdir()
        options = OWN | {"pooling": "mean", "max_tokens": 24, "dtype": kind}
        encoder = HFEncoder(str(llama_folder), **options).eval().to(device)
        names = embed_corpus(folder, encoder, store, device, 16, 64, "test")
        rows[device] = np.concatenate([open_shard(folder / name) for name in names]).astype(np.float32)
    cosines = (rows["cpu"] * rows["cuda"]).sum(1) / np.prod([np.linalg.norm(x, axis=1) for x in rows.values()], axis=0)
    assert cosines.min() > lowest
