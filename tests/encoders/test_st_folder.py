"""Folders of sentence-transformers as encoders, read and written. Run: pytest tests/encoders/test_st_folder.py"""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tests.encoders.tokenizers_of_all_kinds import byte_level, word_piece
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from dream.encoders.hf import HFEncoder
from dream.utils.errors import ConfigError

OWN = {"pooling": "auto", "query_prefix": None, "passage_prefix": None, "max_tokens": None, "dtype": "float32",
       "dropout": None, "gradient_checkpointing": False, "chunk": None, "trust_remote_code": False,
       "attention": "auto", "bidirectional": None, "compile": False,
       "lora": {"rank": 0, "alpha": 32, "dropout": 0.0, "targets": None}}  # fmt: skip
MODELS = "sentence_transformers.models"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def write_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_modules(folder, paths):
    modules = [(path, path.partition("_")[2] or "Transformer") for path in paths]
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"{MODELS}.{name}"} for i, (path, name) in enumerate(modules)
    ])  # fmt: skip


def write_dense(folder, outputs=8, activation="torch.nn.modules.activation.Tanh", **more):
    config = {"in_features": 16, "out_features": outputs, "bias": True, "activation_function": activation}
    write_json(folder / "config.json", config | more)
    generator = torch.Generator().manual_seed(1)
    save_file({"linear.weight": torch.randn(outputs, 16, generator=generator) / 4,
               "linear.bias": torch.randn(outputs, generator=generator) / 4}, folder / "model.safetensors")  # fmt: skip


def write_transformer(folder):
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=200, **SIZES)).save_pretrained(folder)
    word_piece().save_pretrained(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """CLS pooling, a Dense with tanh, Normalize, prompts, and a length of 20 tokens."""
    folder = tmp_path_factory.mktemp("st")
    write_transformer(folder)
    write_modules(folder, ["", "1_Pooling", "2_Dense", "3_Normalize"])
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_cls_token": True,
                                                  "pooling_mode_mean_tokens": False})  # fmt: skip
    write_dense(folder / "2_Dense")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    prompts = {"query": "query: ", "document": "passage: "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})
    return folder


@pytest.fixture
def changeable(published, tmp_path):
    return shutil.copytree(published, tmp_path / "st")


def by_hand(folder, text):
    """normalize(tanh(W x_cls + b)) of the text."""
    model, tokenizer = BertModel.from_pretrained(folder).eval(), word_piece()
    with torch.no_grad():
        x_D = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0, 0]
        from safetensors.torch import load_file

        weights = load_file(folder / "2_Dense/model.safetensors")
        return torch.nn.functional.normalize(torch.tanh(weights["linear.weight"] @ x_D + weights["linear.bias"]), dim=0)


def test_pooling_layers_prompts_and_length_are_the_folders(published, caplog):
    encoder = HFEncoder(str(published), **OWN).eval()
    assert encoder.width == 8
    torch.testing.assert_close(encoder.embed_queries(["river stone"])[0], by_hand(published, "query: river stone"))
    passage_D = encoder.embed_texts(["river stone"], "passage")[0]
    torch.testing.assert_close(passage_D, by_hand(published, "passage: river stone"))
    framing = len(word_piece()("passage: ")["input_ids"])
    assert encoder.max_tokens == 20 - framing
    [line] = [line for line in caplog.messages if line.startswith("Encoder ")]
    assert line == (f"Encoder {published}, from its sentence-transformers folder: pooling='cls', "
                    f"query_prefix='query: ', passage_prefix='passage: ', max_tokens={20 - framing}, "
                    "Dense 16→8 (Tanh)")  # fmt: skip


def test_what_the_config_sets_replaces_the_folders(published, caplog):
    given = {"pooling": "mean", "query_prefix": "", "max_tokens": 7}
    encoder = HFEncoder(str(published), **(OWN | given))
    assert {name: encoder.settings()[name] for name in given} == given
    assert encoder.passage_prefix == "passage: "
    assert "pooling='mean' replaces 'cls'" in caplog.messages[-1]
    assert "query_prefix='' replaces 'query: '" in caplog.messages[-1]


def test_saved_and_opened_again_it_is_the_same(published, tmp_path):
    encoder = HFEncoder(str(published), **OWN).eval()
    encoder.save(tmp_path)
    again = HFEncoder.open(tmp_path).eval()
    texts = ["river stone", "the water runs " * 20]
    for side in ("query", "passage"):
        torch.testing.assert_close(again.embed_texts(texts, side), encoder.embed_texts(texts, side))
    assert again.identity() == encoder.identity()
    # Also as a folder that somebody else published, without this project's own file.
    (tmp_path / "encoder.json").unlink()
    published_again = HFEncoder(str(tmp_path), **OWN)
    assert published_again.identity() == encoder.identity()


def test_dense_layers_are_trained(published):
    encoder = HFEncoder(str(published), **OWN)
    encoder.embed_batch(["river"], "query", torch.device("cpu")).sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters() if weight.requires_grad)
    assert encoder.layers[0].linear.weight.grad.abs().sum() > 0


def test_an_old_folder_has_its_transformer_in_a_folder_of_its_own(tmp_path):
    write_transformer(tmp_path / "0_Transformer")
    write_modules(tmp_path, ["0_Transformer", "1_Pooling"])
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False})
    write_json(tmp_path / "0_Transformer/sentence_roberta_config.json", {"max_seq_length": 12, "do_lower_case": True})
    encoder = HFEncoder(str(tmp_path), **OWN).eval()
    assert [encoder.pooling, encoder.max_tokens, encoder.query_prefix] == ["max", 10, ""]


def test_do_lower_case_is_kept(tmp_path):
    torch.manual_seed(0)
    RobertaModel(RobertaConfig(vocab_size=500, pad_token_id=0, **SIZES)).save_pretrained(tmp_path)
    byte_level().save_pretrained(tmp_path)
    write_modules(tmp_path, ["", "1_Pooling"])
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode": "lasttoken"})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": None, "do_lower_case": True})
    encoder = HFEncoder(str(tmp_path), **OWN).eval()
    assert encoder.pooling == "last"
    (tmp_path / "saved").mkdir()
    encoder.save(tmp_path / "saved")
    for opened in (encoder, HFEncoder.open(tmp_path / "saved").eval()):
        assert torch.equal(opened.embed_queries(["RIVER Stone"]), opened.embed_queries(["river stone"]))


def set_pooling(folder, **config):
    write_json(folder / "1_Pooling/config.json", config)


REFUSED = {
    "WordWeights": lambda st: write_modules(st, ["", "1_Pooling", "2_WordWeights"]),
    "Transformer, CNN": lambda st: write_modules(st, ["", "1_CNN", "2_Pooling"]),
    "my_code.Special": lambda st: write_json(st / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": f"{MODELS}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODELS}.Pooling"},
        {"idx": 2, "name": "2", "path": "2", "type": "my_code.Special"}]),
    "weightedmean": lambda st: set_pooling(st, pooling_mode_weightedmean_tokens=True, pooling_mode_mean_tokens=False),
    r"cls \+ max": lambda st: set_pooling(st, pooling_mode=["cls", "max"]),
    "include_prompt": lambda st: set_pooling(st, pooling_mode="mean", include_prompt=False),
    "my.Activation": lambda st: write_dense(st / "2_Dense", activation="my.Activation"),
    "residual": lambda st: write_dense(st / "2_Dense", use_residual=True),
    "token_embeddings": lambda st: write_dense(st / "2_Dense", module_input_name="token_embeddings"),
    "2_Dense holds no weights": lambda st: (st / "2_Dense/model.safetensors").unlink(),
    "cannot be loaded": lambda st: (st / "modules.json").write_text("[{"),
    "fill-mask": lambda st: write_json(st / "sentence_bert_config.json", {"transformer_task": "fill-mask"}),
}  # fmt: skip


@pytest.mark.parametrize("named", REFUSED)
def test_what_cannot_be_taken_is_refused_by_name(changeable, named):
    REFUSED[named](changeable)
    with pytest.raises(ConfigError, match=f"^encoder.name={changeable}: .*{named}.*; ") as error:
        HFEncoder(str(changeable), **OWN)
    assert "\n" not in str(error.value)


def test_a_dot_product_model_is_reported(changeable, caplog):
    write_modules(changeable, ["", "1_Pooling", "2_Dense"])
    write_json(changeable / "config_sentence_transformers.json", {"similarity_fn_name": "dot"})
    HFEncoder(str(changeable), **OWN)
    assert "was published for similarity dot" in caplog.messages[-1]


@pytest.mark.skipif(not importlib.util.find_spec("sentence_transformers"), reason="needs sentence-transformers")
@pytest.mark.parametrize("pooling", ["auto", "mean", "last", "max"])
def test_the_library_reads_the_saved_folder_as_the_encoder(published, tmp_path, pooling):
    from sentence_transformers import SentenceTransformer

    encoder = HFEncoder(str(published), **(OWN | {"pooling": pooling})).eval()
    encoder.save(tmp_path)
    texts = ["river stone", "the water runs " * 20, "Émile reads"]
    folders = [published, tmp_path] if pooling == "auto" else [tmp_path]
    for model in (SentenceTransformer(str(folder), device="cpu") for folder in folders):
        query_QD = model.encode_query(texts, convert_to_tensor=True, normalize_embeddings=True)
        passage_BD = model.encode_document(texts, convert_to_tensor=True, normalize_embeddings=True)
        assert (query_QD * encoder.embed_queries(texts)).sum(1).min() > 0.99999
        assert (passage_BD * encoder.embed_texts(texts, "passage")).sum(1).min() > 0.99999
