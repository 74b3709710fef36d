"""Every YAML composes and instantiates. Run: pytest tests/test_configs.py"""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tests.corpora.conftest import write_records
from tests.scorers.completions_server import CompletionsServer
from tests.scorers.test_gguf import write_gguf

from dream.build import build_module, build_text, build_trainer, check_config
from dream.runs.steps import most_steps
from dream.scorers.smollm2 import FOLDER as SMOLLM2
from dream.utils.cached_folders import new_directory
from dream.utils.errors import ConfigError
from dream.utils.runtime import CONFIG_DIR, PACKAGE

OPTIONS = sorted(
    f"{path.parent.name}={path.stem}"
    for path in CONFIG_DIR.glob("*/[!_]*.yaml")
    if path.parent.name not in ("hydra", "paths") and (path.parent.name != "callbacks" or path.stem == "default")
)
CALLBACKS = sorted(path.stem for path in (CONFIG_DIR / "callbacks").glob("*.yaml") if path.stem != "default")
ABLATION = sorted(path.stem for path in (CONFIG_DIR / "experiment" / "ablation").glob("[!_]*.yaml"))
MOST_VALUES = 110  # lines with a value that `dream-train --cfg job` prints
NEED_PACKAGES = {"logger=wandb": "wandb", "logger=mlflow": "mlflow", "corpus=folder": "bs4",
                 "corpus=hf_dataset": "datasets", "corpus=ir_datasets": "ir_datasets"}  # fmt: skip
SCRIPTS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


@pytest.fixture(scope="module")
def server(llama_folder):
    with CompletionsServer(llama_folder).running() as server:
        yield server


@pytest.fixture
def composed(corpus_folder, llama_folder, tmp_path, request):
    """Composes the training config with one option of one group; what must be given is given."""
    with new_directory(tmp_path / "data" / SMOLLM2) as unfinished:
        shutil.copytree(llama_folder, unfinished, dirs_exist_ok=True)
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (beir / name).write_text((corpus_folder / name).read_text())
    (beir / "qrels" / "dev.tsv").write_text((corpus_folder / "dev.tsv").read_text())
    records = [json.loads(line) for line in (corpus_folder / "corpus.jsonl").read_text().splitlines()]
    parquet = write_records(tmp_path / "corpus.parquet", records)
    table = write_records(tmp_path / "corpus.csv", records)
    write_records(tmp_path / "corpus.tsv", records)
    pages = tmp_path / "pages"
    for folder in (pages, tmp_path / "rows"):
        folder.mkdir()
    for record in records:
        (pages / f"{record['_id']}.md").write_text(f"# {record['title']}\n{record['text']}")
    shutil.copy(corpus_folder / "corpus.jsonl", tmp_path / "rows" / "train.jsonl")
    labels = [
        f"corpus.queries={corpus_folder / 'queries.jsonl'}",
        f"corpus.qrels={{train: {corpus_folder / 'dev.tsv'}}}",
    ]
    room = ["scorer.scoring.max_passage_tokens=24"]
    adapted = [f"corpus.path={corpus_folder / 'corpus.jsonl'}", f"encoder.name={llama_folder}"]
    needed = {
        "data=labelled": [*labels, "objective=info_nce"],
        "experiment=supervised": [f"corpus.path={corpus_folder / 'corpus.jsonl'}", "corpus=jsonl", *labels],
        "corpus=pydocs": ["corpus.packages=[omegaconf]", "corpus.stdlib=false", "corpus.heldout_fraction=0.3"],
        "corpus=jsonl": [f"corpus.path={corpus_folder / 'corpus.jsonl'}"],
        "corpus=parquet": [f"corpus.path={parquet}"],
        "corpus=csv": [f"corpus.path={table}"],
        "corpus=tsv": [f"corpus.path={table.with_suffix('.tsv')}"],
        "corpus=folder": [f"corpus.path={pages}"],
        "corpus=hf_dataset": [f"corpus.dataset={pages.parent / 'rows'}"],
        "corpus=ir_datasets": ["corpus.dataset_id=cranfield"],
        "corpus=text": [f"corpus.path={corpus_folder / 'corpus.jsonl'}", "corpus.split_by=blank_lines"],
        "corpus=beir": [f"corpus.path={beir}"],
        "scorer=hf": [f"scorer.name={llama_folder}"],
        "scorer=gguf": [f"scorer.path={write_gguf(llama_folder, tmp_path / 'tiny.gguf')}"],
        "encoder=hf": [f"encoder.name={llama_folder}", "encoder.pooling=last"],
        "experiment=own_corpus": [f"corpus.path={corpus_folder / 'corpus.jsonl'}"],
        "experiment=adapt": adapted,
        "experiment=adapt_questions": adapted,
        "objective=attention": [
            *room,
            "objective.finder.gain=0",
            "objective.finder.windows=2",
            "objective.finder.candidates=4",
        ],
        "objective=leave_one_out": room,
        "trainer=gpu": ["trainer.accelerator=cpu"],
    }

    def make(option: str) -> DictConfig:
        if option == "scorer=server":
            url = request.getfixturevalue("server").url
            needed[option] = [
                f"scorer.url={url}",
                f"scorer.name={llama_folder}",
                "encoder=hf",
                *needed["encoder=hf"],
            ]
        needed["trainer=fsdp"] = ["encoder=hf", *needed["encoder=hf"]]
        base = {"corpus": "corpus=jsonl", "scorer": "scorer=hf"}
        group = option.split("=")[0]
        chosen = [option]
        if group not in ("experiment", "debug"):
            chosen += [default for name, default in base.items() if name != group]
        elif option.partition("=")[2] in ("quickstart", "questions", "scratch", "smoke", "overfit"):
            chosen += needed["corpus=pydocs"]
        overrides = chosen + [extra for name in chosen for extra in needed.get(name, [])]
        paths = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}", f"paths.run={tmp_path / 'run'}"]
        small = [
            "data.passage_tokens=24",
            "data.context_tokens=12",
            "data.min_context_tokens=6",
            "data.target_tokens=8",
            *([] if option == "scorer=server" else ["scorer.scoring.compile=false"]),  # it takes up to a minute
        ]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose("train", overrides + paths + small + ["data.batch_size=4", "candidates.k=4"])

    return make


def test_there_is_something_to_find():
    assert {"corpus=pydocs", "scorer=scratch", "experiment=quickstart", "debug=smoke"} <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_composes_and_instantiates(composed, option):
    cfg = composed(option)
    if option in NEED_PACKAGES:
        pytest.importorskip(NEED_PACKAGES[option], reason="an extra that is not installed")
    assert "experiment" not in cfg, "the overlay's first line must be: # @package _global_"
    if option == "corpus=ir_datasets":  # its documents would be fetched
        assert instantiate(cfg.corpus).splits() == ["test"]
        return
    if option == "corpus=text":  # one block: its only document could not be trained on
        assert len(list(instantiate(cfg.corpus).documents())) == 1
        return
    if cfg.data.questions:  # the tiny model writes no words; see tests/scorers/test_questions.py
        cfg.data.questions = None
        if "target" in cfg.objective:
            cfg.objective.target = "posterior"
    if "scratch" in cfg.scorer._target_:
        cfg.scorer = OmegaConf.merge(
            cfg.scorer, {"vocabulary": 400, "width": 32, "layers": 2, "training": {"max_steps": 2}}
        )
    parts = build_text(cfg)
    module = build_module(cfg, parts)
    assert build_trainer(cfg, parts.corpus).max_steps == most_steps(cfg.trainer)
    batch = next(iter(parts.data.train_dataloader()))
    assert module.encoder(batch.context, "query").shape == (4, parts.encoder.width)


@pytest.mark.parametrize("kind", ["jsonl", "beir", "text", "csv", "folder"])
def test_own_corpus_may_be_of_any_kind(composed, kind):
    if kind == "folder":
        pytest.importorskip("bs4", reason="an extra that is not installed")
    path = composed(f"corpus={kind}").corpus.path
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", ["experiment=own_corpus", f"corpus={kind}", f"corpus.path={path}"])
    assert instantiate(cfg.corpus).name == "own"


@pytest.mark.parametrize("debug", ["smoke", "overfit"])
def test_debug_runs_take_any_corpus_objective_and_scorer(debug):
    """They make the default corpus and scorer small, and change nothing in others."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        small, own = (compose("train", [f"debug={debug}", *more]) for more in ([], ["experiment=own_corpus"]))
        heads = compose("train", ["debug=smoke", "objective=attention"]).objective.heads
        known = set(compose("train", ["scorer=smollm2"]).scorer)
        published = compose("train", [f"debug={debug}", "scorer=smollm2"]).scorer
    assert small.corpus.packages == ["hydra", "omegaconf"]
    assert own.corpus._target_ != small.corpus._target_
    assert own.trainer.max_steps == small.trainer.max_steps
    assert heads == "all"
    assert small.scorer.vocabulary == 1024
    assert set(published) == known


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_config_composes(script):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        assert compose(script, ["paths.run=/tmp/run"]).paths.data


@pytest.mark.parametrize("setting", ABLATION)
def test_setting_of_the_ablation_makes_an_objective(setting):
    """It learns from the language model only, or without it: only the baseline learns from continuations."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = [f"experiment=ablation/{setting}", "label=row", "paths.run=/tmp/run", "paths.data=/tmp/data"]
        cfg = compose("train", overrides)
    objective, candidates = instantiate(cfg.objective), instantiate(cfg.candidates)
    assert objective.needs_candidates == (not setting.startswith("info_nce"))
    assert objective.needs_continuation == (not objective.needs_candidates)
    assert candidates.counts(cfg.data.batch_size)[0] == cfg.data.batch_size
    assert cfg.name == "ablation"


def values_of(node) -> int:
    """Lines with a key and a value, as `--cfg job` prints them; items of lists are not counted."""
    if isinstance(node, dict):
        return sum(values_of(child) if isinstance(child, dict | list) and child else 1 for child in node.values())
    return sum(values_of(item) for item in node if isinstance(item, dict))


def test_a_run_has_few_knobs():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("train", ["paths.run=/tmp/run"]))
    assert values_of(cfg) <= MOST_VALUES


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "model_parallel"])
def test_divided_weights_are_refused(strategy):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", ["paths.run=/tmp/run", f"+trainer.strategy={strategy}"])
        check_config(compose("train", ["paths.run=/tmp/run", "trainer=ddp"]))
    remedy = "is not supported; choose trainer=ddp, or trainer=fsdp"
    with pytest.raises(ConfigError, match=f"trainer.strategy={strategy}: {remedy}"):
        check_config(cfg)


def test_every_default_callback_has_a_file_and_a_class():
    """One file a callback, under its own name. Those that adapt also average the weights; the others are default."""
    adapt = ["experiment=adapt", "encoder.name=x", "corpus.path=x"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        default, callbacks = (compose("train", ["paths.run=/tmp/run", *more]).callbacks for more in ([], adapt))
    assert sorted(callbacks) == sorted([*default, "weight_average"]) == CALLBACKS
    assert all("_target_" in each for each in callbacks.values())


def test_a_group_has_a_folder_of_the_same_name():
    """conf/corpus ↔ src/dream/corpora and so on; the others configure Lightning, torch or Hydra."""
    plural = {"corpus": "corpora", "encoder": "encoders", "scorer": "scorers", "objective": "objectives",
              "index": "indexes", "logger": "loggers"}  # fmt: skip
    foreign = {"paths", "hydra", "trainer", "optimizer", "experiment", "debug"}
    for group in (path.name for path in CONFIG_DIR.iterdir() if path.is_dir()):
        assert group in foreign or (PACKAGE / plural.get(group, group)).is_dir(), group


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.split("=")[0] in ("experiment", "debug")])
def test_an_overlay_names_its_runs(composed, option):
    """`name` stands in train.yaml itself, which must not win over the overlay."""
    assert composed(option).name == option.split("=")[1]


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision_is_chosen_by_the_processor(corpus, tmp_path, monkeypatch, native, expected):
    monkeypatch.setattr("dream.utils.runtime.has_fast_bfloat16", lambda device: native)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", ["experiment=adapt", "encoder.name=x", "corpus.path=x", f"paths.run={tmp_path}"])
    assert build_trainer(cfg, corpus).precision == expected
