"""Files of strangers run no code. Run: pytest tests/test_trust.py"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from dream.encoders.hf import HFEncoder
from dream.runs.load import open_config, open_run
from dream.scorers.hf import HFScorer
from dream.utils.errors import DataError, DreamError

ROOT = Path(__file__).parents[1]
SCORING = {"template": ["{passage}", "{context}"], "max_passage_tokens": 24, "tokens_per_forward": 256,
           "dtype": "float32", "compile": False}  # fmt: skip
ENCODER = {"pooling": "mean", "query_prefix": "", "passage_prefix": "", "max_tokens": 16, "dtype": "float32",
            "dropout": None, "gradient_checkpointing": False, "chunk": None, "trust_remote_code": False,
            "attention": "auto", "bidirectional": None, "compile": False,
       "lora": {"rank": 0, "alpha": 32, "dropout": 0.0, "targets": None}}  # fmt: skip


class RunsCode:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.fixture
def trace(tmp_path) -> Path:
    """Exists if a stranger's code ran."""
    return tmp_path / "ran"


@pytest.fixture
def model_with_code(llama_folder, tmp_path, trace) -> Path:
    """Asks for its own modelling file, which leaves a trace."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Config", "AutoModel": "strange.Model",
                                                     "AutoModelForCausalLM": "strange.Model"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "strange.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    return folder


@pytest.fixture
def model_with_pickle(llama_folder, tmp_path, trace) -> Path:
    """Weights as a pickle that runs code."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": RunsCode(trace)}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("kind", ["model_with_code", "model_with_pickle"])
def test_a_model_folder_runs_no_code(request, kind, store, trace):
    folder = request.getfixturevalue(kind)
    with pytest.raises(DreamError, match=str(folder)):
        HFEncoder(name=str(folder), **ENCODER)
    with pytest.raises(DreamError, match=str(folder)):
        HFScorer(None, str(folder), SCORING, False, cache_megabytes=0).load(store)
    assert not trace.exists()


@pytest.mark.parametrize("section", ["encoder", "index", "data"])
@pytest.mark.parametrize("target", ["os.system", "strange.Encoder", "dream"])
def test_the_config_of_a_run_names_no_foreign_code(tmp_path, trace, section, target):
    run = tmp_path / "run"
    (run / "encoder").mkdir(parents=True)
    own = {"_target_": "dream.encoders.static.StaticEncoder"}
    cfg = dict.fromkeys(("encoder", "index", "data", "corpus", "scorer"), own)
    cfg |= {section: {"nested": [{"_target_": target, "command": f"touch {trace}"}]}}
    OmegaConf.save(OmegaConf.create(cfg), run / "config.yaml")
    with pytest.raises(DataError, match=rf"config\.yaml: refused, because it names {target}"):
        open_run(run)
    assert not trace.exists()


def test_a_run_does_not_decide_that_its_language_model_may_run_code(tmp_path):
    run = tmp_path / "run"
    (run / "encoder").mkdir(parents=True)
    own = {"_target_": "dream.encoders.static.StaticEncoder"}
    cfg = dict.fromkeys(("encoder", "index", "data", "corpus"), own)
    cfg["scorer"] = {"_target_": "dream.scorers.hf.HFScorer", "name": "strange", "trust_remote_code": True}
    OmegaConf.save(OmegaConf.create(cfg | {"paths": {"data": str(tmp_path)}}), run / "config.yaml")
    assert open_config(run).scorer.trust_remote_code is False
    assert open_config(run, trust=["remote_code"]).scorer.trust_remote_code is True


@pytest.mark.parametrize(
    "index",
    [
        {
            "_target_": "dream.utils.atomic_io.remove",
            "path": {"_target_": "dream.utils.atomic_io.Path", "_args_": ["X"]},
        },
        {
            "_target_": "dream.indexes.faiss.FaissIndex",
            "factory": "${evil}",
            "search_params": {},
        },
        {"_target_": "dream.indexes.faiss.faiss.IndexFlatIP", "_args_": [4]},
    ],
)
def test_functions_imports_and_interpolations_of_a_config_run_no_code(tmp_path, index):
    """A function of this package, a class that it imports, and a target that an interpolation brings in."""
    kept = tmp_path / "kept"
    kept.mkdir()
    run = tmp_path / "run"
    (run / "encoder").mkdir(parents=True)
    own = {"_target_": "dream.encoders.static.StaticEncoder"}
    cfg = dict.fromkeys(("encoder", "data", "corpus", "scorer"), own) | {"paths": {"data": str(tmp_path)}}
    cfg["evil"] = {"_target_": "builtins.open", "file": str(tmp_path / "made"), "mode": "w"}
    cfg["index"] = json.loads(json.dumps(index).replace('"X"', json.dumps(str(kept))))
    OmegaConf.save(OmegaConf.create(cfg), run / "config.yaml")
    with pytest.raises(DataError, match=r"config\.yaml: refused, because it names"):
        open_run(run)
    assert kept.exists()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", ["!!python/object/apply:os.system ['touch ran']", "just text", "encoder: [", ""])
def test_a_config_that_is_none_is_refused(tmp_path, content):
    run = tmp_path / "run"
    (run / "encoder").mkdir(parents=True)
    (run / "config.yaml").write_text(content)
    with pytest.raises(DataError, match=r"config\.yaml: not the config of a run"):
        open_run(run)


def test_no_array_or_module_is_unpickled():
    loads = re.compile(
        r"\b(?:import pickle|pickle\.loads?|allow_pickle=True|weights_only=False|trust_remote_code=True)"
    )
    for source in (ROOT / "src").rglob("*.py"):
        assert not loads.search(source.read_text()), source
        for call in re.findall(r"\b(?:np|torch)\.load\((?:[^()]|\([^()]*\))*\)", source.read_text()):
            assert "allow_pickle=False" in call or "weights_only=True" in call, f"{source}: {call}"


def test_tensorboard_is_bound_to_this_machine():
    for file in [ROOT / "README.md", *(ROOT / "src").rglob("*.py")]:
        for line in file.read_text().splitlines():
            if re.search(r"tensorboard --logdir", line):
                assert "--host localhost" in line, f"{file}: {line}"
