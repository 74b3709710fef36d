"""dream-pretrain and dream-heads on a tiny corpus. Run: pytest tests/commands/test_language_model_commands.py"""

import json

import pytest
from hydra import compose, initialize_config_dir

from dream.commands.pretrain import pretrain
from dream.commands.rank_heads import heads
from dream.utils.runtime import CONFIG_DIR

SMALL = ["scorer=scratch", "scorer.vocabulary=400", "scorer.width=32", "scorer.layers=2", "scorer.training.max_steps=2",
         "scorer.scoring.compile=false"]  # fmt: skip
FINDER = ["objective.finder.gain=0", "objective.finder.windows=2", "objective.finder.candidates=4",
          "trainer.accelerator=cpu"]  # fmt: skip


@pytest.fixture
def composed(corpus_folder, tmp_path):
    def make(name: str, *overrides: str):
        corpus = ["corpus=jsonl", f"corpus.path={corpus_folder / 'corpus.jsonl'}", "corpus.text_fields=[text]"]
        folders = [
            f"paths.data={tmp_path / 'data'}",
            f"paths.logs={tmp_path / 'logs'}",
            f"paths.run={tmp_path / 'run'}",
        ]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(name, [*corpus, *folders, *SMALL, *overrides])

    return make


def test_a_language_model_is_trained_once(composed, capsys):
    gain = pretrain(composed("pretrain"))
    assert "Pretraining a language model" in capsys.readouterr().out
    assert pretrain(composed("pretrain")) == gain
    assert "Pretraining a language model" not in capsys.readouterr().out


def test_heads_are_ranked_and_shown(composed, tmp_path, capsys):
    best = heads(composed("rank_heads", *FINDER))
    (stored,) = (tmp_path / "data" / "heads").glob("*/heads.json")
    assert best == max(score for _, _, score in json.loads(stored.read_text())["heads"])
    assert stored.parent.with_suffix(".png").exists()
    printed = capsys.readouterr().out
    assert "layer  head" in printed
    assert "without evaluation" not in printed
