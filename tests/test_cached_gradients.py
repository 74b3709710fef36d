"""Encoding in chunks gives the loss and the gradient of one large batch. Run: pytest tests/test_cached_gradients.py"""

import pytest
import torch
from safetensors.torch import load_file
from tests.encoders.test_hf import make
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.export.test_export import SIZES
from tests.processes import run_ranks
from tests.random_models import save_random_model
from tests.test_module_on_ranks import OBJECTIVES, SETTINGS, steps_of, steps_of_all
from transformers import BertConfig, BertModel

from dream.encoders import chunks
from dream.encoders.chunks import AMX_TOKENS, CPU_TOKENS, fastest_chunk
from dream.module import RetrieverModule
from dream.store.ragged import pad_tokens
from dream.utils.errors import ConfigError

TEXTS = [[token % 300 + 5 for token in range(number, number + 1 + number % 7)] for number in range(21)]


def bert(folder, dropout: float = 0.0) -> str:
    tokenizer = KINDS["word_piece"]()
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES, **rates)
    return save_random_model(BertModel(config), tokenizer, folder)


@pytest.fixture(scope="module")
def settings(run_overrides, tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("cached")
    base = [*run_overrides, f"paths.data={folder / 'data'}", f"paths.logs={folder / 'logs'}",
            f"paths.run={folder / 'run'}", *SETTINGS, "encoder=hf", f"encoder.name={bert(folder / 'bert')}",
            "encoder.max_tokens=24"]  # fmt: skip
    return {name: [*base, f"objective={name.split(',')[0].split()[0]}", *more] for name, more in OBJECTIVES.items()}


def assert_same(steps, others) -> None:
    for (loss, gradient), (other_loss, other_gradient) in zip(steps, others, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert (other_gradient - gradient).norm() <= 1e-6 * gradient.norm()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_size_of_chunks_gives_the_same_loss_and_gradient(settings, name):
    """In float64."""
    whole = steps_of(settings[name])
    for chunk in (4, 16):
        assert_same(whole, steps_of([*settings[name], f"encoder.chunk={chunk}"]))


def test_adapters_get_the_same_gradient(settings):
    pytest.importorskip("peft")
    lora = [*settings["kl_posterior"], "encoder.lora.rank=4"]
    assert_same(steps_of(lora), steps_of([*lora, "encoder.chunk=4", "encoder.gradient_checkpointing=true"]))


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(settings, tmp_path):
    names = ("kl_posterior", "in_batch_attention")
    expected = {name: steps_of(settings[name]) for name in names}
    chunked = {name: [*settings[name], "encoder.chunk=3"] for name in names}
    for result in run_ranks(2, tmp_path / "job", steps_of_all, chunked):
        for name in names:
            assert_same(expected[name], result[name])


def gradient_of(encoder, autocast: bool = False) -> torch.Tensor:
    """Of a loss that compares all texts with each other."""
    encoder.zero_grad()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, autocast):
        embedding_BD = encoder(pad_tokens(TEXTS, 0), "passage")
    torch.logsumexp(embedding_BD @ embedding_BD.T / 0.05, dim=1).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in encoder.parameters() if weight.requires_grad])


def test_the_second_pass_repeats_dropout(tmp_path, monkeypatch):
    """Bitwise the gradient of the same chunks with all their activations kept."""
    encoder = make(bert(tmp_path / "bert", dropout=0.2), chunk=4)
    cached = gradient_of(encoder)
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "checkpoint", lambda run, *tensors, use_reentrant: run(*tensors))
        kept = gradient_of(encoder)
    assert torch.equal(cached, kept)
    assert not torch.allclose(cached, gradient_of(encoder.eval())), "there was dropout"


def test_chunks_lose_no_precision_with_bfloat16(tmp_path):
    folder = bert(tmp_path / "bert")
    exact, whole = gradient_of(make(folder)), gradient_of(make(folder), autocast=True)
    chunked = gradient_of(make(folder, chunk=1), autocast=True)
    assert (chunked - exact).norm() <= 1.1 * (whole - exact).norm()


def test_no_forward_has_more_texts_than_a_chunk(tmp_path):
    encoder, rows = make(bert(tmp_path / "bert"), chunk=4), []
    encoder.model.register_forward_hook(lambda *call: rows.append(len(call[-1].last_hidden_state)))
    gradient_of(encoder)
    assert sorted(set(rows)) == [1, 4]
    assert sum(rows) >= 2 * len(TEXTS) - 4, "each text is encoded twice"
    rows.clear()
    with torch.inference_mode():
        assert len(encoder(pad_tokens(TEXTS, 0), "passage")) == sum(rows) == len(TEXTS)
    assert max(rows) == 4


def test_an_impossible_chunk_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="encoder.chunk=0: null, or at least 1 text"):
        make(bert(tmp_path / "bert"), chunk=0)


def test_a_resumed_run_is_bitwise_the_same(config, tmp_path, monkeypatch):
    from dream.commands.train import train

    own = ["encoder=hf", f"encoder.name={bert(tmp_path / 'bert', 0.2)}", "encoder.chunk=3", "encoder.max_tokens=24",
           "callbacks.candidate_panels=null", "scorer.scoring.compile=false"]  # fmt: skip
    train(config("whole", *own))
    step = RetrieverModule.training_step

    def stop_at_4(module, *batch):
        if module.global_step == 4:
            raise RuntimeError("stopped")
        return step(module, *batch)

    monkeypatch.setattr(RetrieverModule, "training_step", stop_at_4)
    with pytest.raises(RuntimeError, match="stopped"):
        train(config("part", *own))
    monkeypatch.setattr(RetrieverModule, "training_step", step)
    train(config("part", *own, f"ckpt={tmp_path / 'logs/part/checkpoints/last.ckpt'}"))
    whole, part = (load_file(tmp_path / f"logs/{run}/encoder/model.safetensors") for run in ("whole", "part_2"))
    assert all(torch.equal(value, part[name]) for name, value in whole.items())


def test_without_gradient_a_cpu_reads_texts_whose_activations_fit_into_its_cache():
    batch = pad_tokens([[1] * 128] * 100, 0)
    assert fastest_chunk(batch, None, torch.float32) == CPU_TOKENS // 128 == 16
    assert fastest_chunk(batch, 4, torch.float32) == 4
    assert fastest_chunk(batch.to("meta"), None, torch.float32) is None
    assert fastest_chunk(pad_tokens([[1] * 5000], 0), None, torch.float32) == 1


def test_in_bfloat16_with_amx_a_forward_has_more_texts():
    batch = pad_tokens([[1] * 128] * 100, 0)
    expected = (AMX_TOKENS if torch.cpu._is_amx_tile_supported() else CPU_TOKENS) // 128
    assert fastest_chunk(batch, None, torch.bfloat16) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert fastest_chunk(batch, None, torch.float32) == expected


def test_the_second_pass_knows_the_devices_whose_random_state_it_repeats(tmp_path, monkeypatch):
    """torch keeps the state of the GPUs that it finds among the arguments, so these must be tensors."""
    arguments = []
    monkeypatch.setattr(
        chunks, "checkpoint", lambda run, *tensors, use_reentrant: arguments.extend(tensors) or run(*tensors)
    )
    gradient_of(make(bert(tmp_path / "bert"), chunk=4))
    assert arguments
    assert all(isinstance(each, torch.Tensor) for each in arguments)
