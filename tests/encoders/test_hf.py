"""Hub-type encoders on tiny random models. Run: pytest tests/encoders"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from dream.encoders.hf import HFEncoder
from dream.encoders.static import StaticEncoder
from dream.store.ragged import pad_tokens
from dream.store.tokens import BatchTokenizer
from dream.utils.errors import ConfigError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "query", "passage", ":", "a", "red", "green", "blue", "apple"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A random BERT whose tokenizer frames a text with [CLS] and [SEP]."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    folder = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make(folder, pooling="mean", **changes) -> HFEncoder:
    settings = {
        "query_prefix": "query :",
        "passage_prefix": "passage :",
        "max_tokens": 8,
        "dtype": "float32",
        "dropout": None,
        "gradient_checkpointing": False,
        "chunk": None,
        "trust_remote_code": False,
        "attention": "auto",
        "bidirectional": None,
        "compile": False,
        "lora": {"rank": 0, "alpha": 32, "dropout": 0.0, "targets": None},
    }
    return HFEncoder(**(settings | {"name": str(folder), "pooling": pooling} | changes))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_embeddings_equal_the_model_run_on_the_framed_text(bert_folder, pooling):
    """[CLS] passage : red apple [SEP], by itself and without padding, pooled by hand."""
    encoder = make(bert_folder, pooling).eval()
    rows = [[8, 11], [9, 10, 7, 11]]
    embedding_BD = encoder(pad_tokens(rows, 0), "passage")
    model = AutoModel.from_pretrained(bert_folder, dtype=torch.float32).eval()
    for row, embedding_D in zip(rows, embedding_BD, strict=True):
        hidden_TD = model(torch.tensor([[1, 5, 6, *row, 2]])).last_hidden_state[0]
        pooled_D = {"mean": hidden_TD.mean(0), "cls": hidden_TD[0], "last": hidden_TD[-1],
                    "max": hidden_TD.amax(0)}[pooling]  # fmt: skip
        torch.testing.assert_close(embedding_D, pooled_D / pooled_D.norm(), atol=1e-5, rtol=1e-5)


def test_the_direction_of_attention_is_part_of_the_identity(llama_folder, tmp_path):
    """Otherwise, cached embeddings of one direction would be searched with queries of the other."""
    published, both = make(llama_folder, "last"), make(llama_folder, "last", bidirectional=True)
    assert published.fingerprint() == both.fingerprint()
    assert published.identity() != both.identity()
    both.save(tmp_path)
    assert HFEncoder.open(tmp_path).identity() == both.identity()


def test_queries_get_their_own_prefix_and_are_cut(bert_folder):
    encoder = make(bert_folder, "mean", max_tokens=2).eval()
    short_QD = encoder.embed_queries(["red apple"])
    long_QD = encoder.embed_queries(["red apple green blue"])
    torch.testing.assert_close(short_QD, long_QD)
    assert not torch.allclose(short_QD, encoder(pad_tokens([[8, 11]], 0), "passage"))


def test_it_trains_in_train_mode_with_a_gradient_and_checkpointing(bert_folder):
    encoder = make(bert_folder, "mean", gradient_checkpointing=True)
    assert encoder.model.training
    encoder(pad_tokens([[8, 11]], 0), "query").sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


def test_saved_and_opened_again_it_embeds_the_same(bert_folder, tmp_path):
    encoder = make(bert_folder, "cls").eval()
    encoder.save(tmp_path)
    again = HFEncoder.open(tmp_path).eval()
    assert torch.equal(again.embed_queries(["a red apple"]), encoder.embed_queries(["a red apple"]))
    assert again.identity() == encoder.identity()


@pytest.mark.parametrize(
    ("key", "value"),
    [("pooling", "sum"), ("max_tokens", 0), ("max_tokens", 512), ("dtype", "float31"), ("name", "/nowhere")],
)
def test_impossible_values_are_refused_by_name(bert_folder, key, value):
    with pytest.raises(ConfigError, match=f"encoder.{key}"):
        make(bert_folder, **{key: value})


def test_a_tilde_is_the_home_folder(bert_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(bert_folder.parent))
    assert make(f"~/{bert_folder.name}").width == 16


def test_a_plain_folder_has_no_prefix_mean_pooling_and_256_tokens(bert_folder):
    encoder = make(bert_folder, "auto", query_prefix=None, passage_prefix=None, max_tokens=None)
    assert [encoder.pooling, encoder.query_prefix, encoder.passage_prefix, encoder.max_tokens] == ["mean", "", "", 256]


def test_an_encoder_that_reads_less_than_a_passage_is_reported(bert_folder, caplog):
    store = SimpleNamespace(manifest={"lengths": [24, 12, 6, 8]})
    make(bert_folder, max_tokens=24).initialize(store, lambda: None)
    assert not caplog.messages
    make(bert_folder, max_tokens=8).initialize(store, lambda: None)
    assert caplog.messages == [
        "data.passage_tokens=24: the encoder reads 8 tokens of a passage (encoder.max_tokens); set "
        "data.passage_tokens=8, so that it reads all of them"
    ]


SMALL = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 16}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}  # fmt: skip


@pytest.mark.parametrize(
    "model",
    [
        lambda: T5Model(T5Config(**T5)),
        lambda: T5EncoderModel(T5Config(**T5)),
        lambda: MT5ForConditionalGeneration(MT5Config(**T5)),
        lambda: BartModel(BartConfig(vocab_size=len(WORDS), **BART)),
    ],
)
def test_of_an_encoder_decoder_the_encoder_half_is_trained_and_saved(bert_folder, tmp_path, model):
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path / "model")
    whole = model().eval()
    whole.save_pretrained(tmp_path / "model")
    encoder = make(tmp_path / "model")
    ids = torch.tensor([[1, 4, 6, 8, 11, 2]])
    hidden_TD = whole.get_encoder()(input_ids=ids).last_hidden_state[0]
    expected_1D = torch.nn.functional.normalize(hidden_TD.mean(0, keepdim=True), dim=1)
    embedding_1D = encoder.eval()(pad_tokens([[8, 11]], 0), "query")
    torch.testing.assert_close(embedding_1D, expected_1D, atol=1e-5, rtol=1e-5)
    encoder(pad_tokens([[8, 11]], 0), "query").sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)
    (tmp_path / "saved").mkdir()
    encoder.save(tmp_path / "saved")
    again = HFEncoder.open(tmp_path / "saved").eval()
    torch.testing.assert_close(again(pad_tokens([[8, 11]], 0), "query"), embedding_1D)


def test_long_texts_fit_a_model_whose_positions_begin_at_2(bert_folder, tmp_path):
    """RoBERTa: a table of 20 positions has room for 18 tokens: [CLS] query : TEXT [SEP]."""
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(tmp_path)
    RobertaModel(RobertaConfig(max_position_embeddings=20, pad_token_id=1, intermediate_size=16, **SMALL)
                 ).save_pretrained(tmp_path)  # fmt: skip
    encoder = make(tmp_path, max_tokens=None)
    assert encoder.max_tokens == 14
    assert encoder.embed_queries(["red apple " * 30]).isfinite().all()
    with pytest.raises(ConfigError, match=r"encoder.max_tokens=15: at most 14 besides prefix .* the model reads 18"):
        make(tmp_path, max_tokens=15)


def test_a_special_token_in_a_query_of_any_encoder_is_text(store, tokenizer):
    """The static encoder, too: "<pad>" in a query is what it is in a document."""
    encoder = StaticEncoder(max_tokens=16, random_width=4, token_embedding_share=0.5, seed=0)
    encoder.adopt_tokenizer(tokenizer)
    encoder.initialize(store, lambda: torch.randn(len(tokenizer), 8))
    rows = BatchTokenizer(tokenizer)(["<pad> river"]).ids_T
    expected_1D = encoder(pad_tokens([rows], 0), "query")
    torch.testing.assert_close(encoder.embed_queries(["<pad> river"]), expected_1D)


def test_the_static_encoder_needs_no_row_for_special_tokens(store, tokenizer):
    encoder = StaticEncoder(max_tokens=16, random_width=0, token_embedding_share=1.0, seed=0)
    larger = copy.deepcopy(tokenizer)
    rows = len(larger)
    larger.add_special_tokens({"pad_token": "<late>"})
    encoder.adopt_tokenizer(larger)
    counts = np.append(store.encoder_document_frequency, 0)
    encoder.initialize(SimpleNamespace(encoder_document_frequency=counts, passages=store.passages),
                       lambda: torch.randn(rows, 8))  # fmt: skip
    assert encoder.embed_queries(["a river", "a much longer river"]).isfinite().all()
