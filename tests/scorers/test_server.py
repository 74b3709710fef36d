"""A language model on a server: the values of `hf`, limits, errors. Run: pytest tests/scorers/test_server.py"""

import pytest
import torch
from omegaconf import OmegaConf
from tests.encoders.tokenizers_of_all_kinds import KINDS
from tests.random_models import SCORING, save_random_model
from tests.scorers.completions_server import CompletionsServer
from transformers import LlamaConfig, LlamaForCausalLM

from dream.objectives.attention import Attention
from dream.objectives.in_batch_attention import InBatchAttention
from dream.scorers import completions
from dream.scorers.hf import HFScorer
from dream.scorers.server import ServerScorer
from dream.utils import errors
from dream.utils.errors import ConfigError
from dream.utils.runtime import CONFIG_DIR

WINDOWS = torch.tensor([0, 7, 31])
CANDIDATES = torch.tensor([[3, -1, 40, 41], [50, 51, 2, 9], [-1, 60, 0, 1]])
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory) -> str:
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SMALL)
    return save_random_model(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=["echo", "prompt_logprobs"])
def any_server(folder, request):
    with CompletionsServer(folder, request.param).running() as server:
        yield server


@pytest.fixture
def server(folder):
    with CompletionsServer(folder).running() as server:
        yield server


def scorer_of(url: str, folder: str, store=None, scoring: dict | None = None, **changes) -> ServerScorer:
    own = OmegaConf.load(CONFIG_DIR / "scorer/server.yaml")
    own = OmegaConf.merge(
        own,
        {"url": url, "name": folder, "cache_megabytes": 0, "retries": 2},
        changes,
        {"scoring": {"template": SCORING["template"], "max_passage_tokens": 16} | (scoring or {})},
    )
    own = OmegaConf.to_container(own)
    own.pop("_target_")
    scorer = ServerScorer(None, **own)
    if store is not None:
        scorer.load(store)
    return scorer


def hf_of(folder: str, store) -> HFScorer:
    scorer = HFScorer(None, folder, SCORING, trust_remote_code=False, cache_megabytes=0)
    scorer.load(store)
    return scorer


def test_values_are_those_of_hf(any_server, folder, store):
    """In several requests, whose choices come in another order."""
    scorer = scorer_of(any_server.url, folder, store, {"tokens_per_forward": 100})
    hf = hf_of(folder, store)
    for method in ("loglik", "loglik_without"):
        torch.testing.assert_close(getattr(scorer, method)(store, WINDOWS, CANDIDATES),
                                   getattr(hf, method)(store, WINDOWS, CANDIDATES), rtol=1e-5, atol=1e-4)  # fmt: skip
    ours, theirs = (each.token_loglik(store, WINDOWS, CANDIDATES) for each in (scorer, hf))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-4)
    assert torch.equal(ours[1], theirs[1])
    sizes = [sum(map(len, asked["prompt"])) for asked in any_server.requests]
    assert len(sizes) > 6
    assert max(sizes) <= 100


def test_settings_of_a_local_model_are_ignored(server, folder, store):
    """dream-evaluate and dream-serve set them for every language model."""
    scorer = scorer_of(server.url, folder, store, {"dtype": "float32", "compile": True})
    assert not scorer.scoring.compile


def test_the_cache_asks_only_once(server, folder, store):
    scorer = scorer_of(server.url, folder, store, cache_megabytes=10)
    first = scorer.loglik(store, WINDOWS, CANDIDATES)
    asked = len(server.requests)
    assert torch.equal(
        scorer_of(server.url, folder, store, cache_megabytes=10).loglik(store, WINDOWS, CANDIDATES), first
    )
    assert len(server.requests) == asked + 2, "only the two probes at the start"


def test_a_busy_server_is_asked_again(server, folder, store, monkeypatch):
    scorer = scorer_of(server.url, folder, store)
    expected = scorer.loglik(store, WINDOWS, CANDIDATES)
    server.failures = [503, 429]
    assert torch.equal(scorer.loglik(store, WINDOWS, CANDIDATES), expected)
    server.failures = [500, 500, 500]
    with pytest.raises(ConfigError, match=r"scorer.url=http.*: the server answers 500 .*; start it again; ckpt=auto"):
        scorer.loglik(store, WINDOWS, CANDIDATES)
    server.failures = [400]
    with pytest.raises(ConfigError, match=r"the server answers 400 .*busy.*"):
        scorer.loglik(store, WINDOWS, CANDIDATES)


def test_few_requests_at_a_time(server, folder, store):
    scorer = scorer_of(server.url, folder, store, {"tokens_per_forward": 1}, concurrency=2)
    server.pause = 0.02
    scorer.loglik(store, WINDOWS, CANDIDATES)
    assert server.most == 2


def test_the_limit_of_tokens(server, folder, store):
    scorer = scorer_of(server.url, folder, store, token_limit=500)
    scorer.loglik(store, WINDOWS, CANDIDATES)
    assert 0 < scorer.tokens_sent <= 500
    asked = len(server.requests)
    with pytest.raises(ConfigError, match=r"scorer.token_limit=500: \d+ tokens have been sent, and the next step"):
        scorer.loglik(store, WINDOWS, CANDIDATES)
    assert len(server.requests) == asked


def test_a_server_that_is_away_is_named(folder, store):
    with pytest.raises(ConfigError, match=r"scorer.url=http://127.0.0.1:9/v1: the server cannot be reached .*; start"):
        scorer_of("http://127.0.0.1:9/v1", folder, store)


def test_a_server_that_goes_away_is_named(folder, store, monkeypatch):
    monkeypatch.setattr(completions, "LONGEST_WAIT", 0.01)
    with CompletionsServer(folder).running() as server:
        scorer = scorer_of(server.url, folder, store)
    with pytest.raises(ConfigError, match=r"scorer.url=http.*: the server cannot be reached .*ckpt=auto resumes"):
        scorer.loglik(store, WINDOWS, CANDIDATES)


def test_a_server_without_logprobs_of_prompts_is_refused(folder, store):
    with (
        CompletionsServer(folder, "none").running() as server,
        pytest.raises(ConfigError, match=r"scorer.url=http.*: gives no log-probabilities of the prompt; use a server"),
    ):
        scorer_of(server.url, folder, store)


def test_another_tokenizer_is_refused(server, tmp_path, store):
    other = KINDS["word_piece"]()
    other.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"scorer.name=.*: the model tiny reads the ids of .* as .*; name the"):
        scorer_of(server.url, str(tmp_path), store)


def test_the_model_must_be_there(server, folder, store):
    with pytest.raises(ConfigError, match=r"scorer.model=other: the server at http.* has \['tiny'\]"):
        scorer_of(server.url, folder, store, model="other")


def test_its_positions_count(server, folder, store):
    with pytest.raises(ConfigError, match=r"scorer.scoring.max_passage_tokens=512: .* but the model reads 128"):
        scorer_of(server.url, folder, store, {"max_passage_tokens": 512})


def test_the_key_comes_from_the_environment(server, folder, store, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    scorer_of(server.url, folder, store)
    assert set(server.keys) == {"Bearer a secret"}


def test_objectives_that_need_gradients_are_refused(server, folder, store):
    scorer = scorer_of(server.url, folder, store)
    attention = Attention(0.05, 0.0, 1.0, "keep", "all", 1, 0, None)
    for objective in (attention, InBatchAttention(0.05, 0.0, 1.0, True)):
        with pytest.raises(ConfigError, match="scorer=server: a server gives no gradient, which this objective needs"):
            objective.prepare(scorer, store, 2)
    with pytest.raises(ConfigError, match="encoder=static: starts from the scorer's embeddings"):
        scorer.token_embeddings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8000"}, "scorer.url=localhost:8000: begins with http"),
        ({"concurrency": 0}, "scorer.concurrency=0: at least 1"),
        ({"retries": -1}, "scorer.retries=-1: at least 0"),
        ({"seconds": 0}, "scorer.seconds=0"),
        ({"token_limit": 0}, "scorer.token_limit=0: null, or"),
    ],
)
def test_impossible_values_are_refused(folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        scorer_of(**({"url": "http://127.0.0.1:9/v1", "folder": folder} | changes))


def test_without_httpx2_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"scorer=server: needs the package httpx2: .*\[server\]"):
        scorer_of("http://127.0.0.1:9/v1", folder)


def test_a_whole_run(server, config, folder, llama_folder, tmp_path):
    from dream.commands.train import train

    cfg = config("run", "encoder=hf", f"encoder.name={llama_folder}", "encoder.pooling=last")
    cfg.scorer = OmegaConf.merge(OmegaConf.load(CONFIG_DIR / "scorer/server.yaml"), {
        "url": server.url, "name": folder, "scoring": {"max_passage_tokens": 16}})  # fmt: skip
    train(cfg)
    assert (tmp_path / "logs/run/summary.json").exists()
    assert len(server.requests) > 2
