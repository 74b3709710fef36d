"""Every objective with every target and kind of context. Run: pytest tests/commands/test_targets_and_contexts.py"""

import json

import pytest
import torch
from tests.commands.test_train import fit

from dream.build import build_module, build_text
from dream.encoders.base import cosines
from dream.store.contexts import CONTEXTS
from dream.store.ragged import pad_tokens
from dream.store.store import ENCODER, TARGETS

ROOM = ["scorer.scoring.max_passage_tokens=24"]
OBJECTIVES = {
    "kl_posterior": [],
    "marginal": ["objective.null_similarity=0.1"],
    "leave_one_out": ROOM,
    "attention": [*ROOM, "objective.heads=all"],
    "in_batch_attention": ROOM,
    "info_nce": [],
    "joint_posterior": [],
}
COMBINATIONS = [(target, kind) for target in TARGETS for kind in CONTEXTS if (target, kind) != ("continuation", "span")]


@pytest.fixture(scope="module")
def titled(corpus_folder, tmp_path_factory):
    """The tiny corpus with sentences, with a title at the beginning of each text and with a heading."""
    path = tmp_path_factory.mktemp("titled") / "corpus.jsonl"
    with path.open("w") as file:
        for line in (corpus_folder / "corpus.jsonl").read_text().splitlines():
            document = json.loads(line)
            words = document["text"].split()
            sentences = [" ".join(words[at : at + 5]).capitalize() + "." for at in range(0, len(words), 5)]
            heading = " ".join(words[-3:])
            text = " ".join(sentences[:4]) + f"\n\n{heading}\n\n" + " ".join(sentences[4:])
            title = " ".join(words[:3])
            file.write(json.dumps({"_id": document["_id"], "title": title, "text": f"{title}\n{text}"}) + "\n")
    return path


@pytest.fixture
def asked(config, titled):
    """asked(run, target, kind, *overrides) → the config of a tiny run."""

    def make(run, target, kind, *overrides):
        lengths = ["data.context_tokens=24", "data.min_context_tokens=3"]
        chosen = [f"corpus.path={titled}", f"data.target={target}", f"data.context={kind}", *lengths, "logger=csv"]
        return config(run, *chosen, "trainer.max_steps=2", *overrides)

    return make


@pytest.mark.parametrize(("target", "kind"), COMBINATIONS, ids=lambda value: value)
def test_every_target_with_every_kind_of_context_learns(asked, target, kind):
    recorder, _ = fit(asked("run", target, kind))
    assert sorted(recorder.steps) == [1, 2]
    assert all(torch.isfinite(torch.tensor(loss)) for loss, _ in recorder.steps.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("target", ["context", "both"])
def test_every_objective_asks_for_the_context(asked, target, objective):
    recorder, _ = fit(asked("run", target, "title", f"objective={objective}", *OBJECTIVES[objective]))
    assert all(torch.isfinite(torch.tensor(loss)) for loss, _ in recorder.steps.values())


def test_the_encoder_before_training_reads_passages_as_the_trained_one_does(asked):
    """Without the title that is asked for: otherwise its cosine would give the answer away."""
    cfg = asked("run", "context", "title", "objective=joint_posterior")
    module = build_module(cfg, build_text(cfg))
    encoder, store, firsts = module.encoder, module.store, torch.tensor([[0], [1], [2]])
    context = pad_tokens([store.window_tokens(number, ENCODER)[0] for number in range(3)], 0)
    read, whole = (
        cosines(encoder(context, "query"), encoder(store.passage_batch(firsts[:, 0], 256, training), "passage")).diag()
        for training in (True, False)
    )
    assert not torch.allclose(read, whole)
    torch.testing.assert_close(module.untrained.similarities(context, firsts)[:, 0], read)


def test_resuming_repeats_losses_and_candidates_bitwise(asked, tmp_path):
    steps = ["trainer.max_steps=4"]
    whole, final = fit(asked("whole", "context", "title", *steps))
    checkpoint = next((tmp_path / "logs" / "whole" / "every").glob("*step=2.ckpt"))
    resumed, weights = fit(asked("resumed", "context", "title", *steps), str(checkpoint))
    assert resumed.steps == {step: whole.steps[step] for step in (3, 4)}
    assert all(torch.equal(weights[name], final[name]) for name in final)
