"""Hub-type encoders on tiny random models. Run: pytest tests/encoders"""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertModel, PreTrainedTokenizerFast

from dream.encoders.hf import HFEncoder
from dream.store.ragged import pad_tokens
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
        "gradient_checkpointing": False,
        "trust_remote_code": False,
    }
    return HFEncoder(None, **(settings | {"name": str(folder), "pooling": pooling} | changes))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_embeddings_equal_the_model_run_on_the_framed_text(bert_folder, pooling):
    """[CLS] passage : red apple [SEP], alone and without padding, pooled by hand."""
    encoder = make(bert_folder, pooling).eval()
    rows = [[8, 11], [9, 10, 7, 11]]
    embedding_BD = encoder(pad_tokens(rows, 0), "passage")
    model = AutoModel.from_pretrained(bert_folder, dtype=torch.float32).eval()
    for row, embedding_D in zip(rows, embedding_BD, strict=True):
        hidden_TD = model(torch.tensor([[1, 5, 6, *row, 2]])).last_hidden_state[0]
        pooled_D = {"mean": hidden_TD.mean(0), "cls": hidden_TD[0], "last": hidden_TD[-1]}[pooling]
        torch.testing.assert_close(embedding_D, pooled_D / pooled_D.norm(), atol=1e-5, rtol=1e-5)


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
    assert all(p.grad is not None for name, p in encoder.named_parameters() if "pooler" not in name)


def test_saved_and_opened_again_it_embeds_the_same(bert_folder, tmp_path):
    encoder = make(bert_folder, "cls").eval()
    encoder.save(tmp_path)
    again = HFEncoder.open(tmp_path).eval()
    assert torch.equal(again.embed_queries(["a red apple"]), encoder.embed_queries(["a red apple"]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("pooling", "max"), ("max_tokens", 0), ("max_tokens", 512), ("dtype", "float31"), ("name", "/nowhere")],
)
def test_impossible_values_are_refused_by_name(bert_folder, key, value):
    with pytest.raises(ConfigError, match=f"encoder.{key}"):
        make(bert_folder, **{key: value})
