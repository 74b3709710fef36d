"""Average of the weights before and after training. Run: pytest tests/callbacks/test_weight_average.py"""

import pytest
import torch

from dream.callbacks.index_refresh import IndexRefresh
from dream.callbacks.weight_average import WeightAverage
from dream.utils.errors import ConfigError

CALLBACK = "+callbacks.weight_average={_target_: dream.callbacks.weight_average.WeightAverage, untrained: 0.5}"


def weights(module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.encoder.named_parameters()}


def test_the_last_weights_are_the_average(train, tmp_path) -> None:
    plain, _ = train(tmp_path / "plain", [IndexRefresh(0, 50)], 3)
    untrained, _ = train(tmp_path / "untrained", [WeightAverage(1.0), IndexRefresh(0, 50)], 3)
    averaged, _ = train(tmp_path / "averaged", [WeightAverage(0.25), IndexRefresh(0, 50)], 3)
    before, after, found = map(weights, (untrained, plain, averaged))
    assert not torch.equal(before["table_VD"], after["table_VD"])
    for name in found:
        torch.testing.assert_close(found[name], 0.25 * before[name] + 0.75 * after[name])


@pytest.mark.parametrize(("name", "step"), [("regular", 10), ("last", 12)])
def test_a_resumed_run_ends_with_the_same_average(train_retriever, tmp_path, name, step) -> None:
    """The checkpoint of step 10 has the trained weights, and that of step 12 the average."""
    regular = "{_target_: dream.callbacks.checkpoints._RunCheckpoint, filename: regular, every_n_train_steps: 5}"
    options = [CALLBACK, f"+callbacks.regular={regular}"]
    expected, _ = train_retriever("run", *options)
    checkpoint = tmp_path / f"run/checkpoints/{name}.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step
    again, _ = train_retriever("run", *options, ckpt=checkpoint)
    for name, weight in weights(again).items():
        assert torch.equal(weight, weights(expected)[name])


def test_the_index_has_the_average(train_retriever) -> None:
    """Also if a refresh falls on the last step."""
    module, _ = train_retriever("run", CALLBACK, "callbacks.index_refresh.every_n_steps=6")
    assert module.index.current.step == 12
    assert module.index.current.encoder_fingerprint == module.encoder.fingerprint()


def test_a_run_that_ends_earlier_says_so(train, tmp_path, caplog) -> None:
    plain, _ = train(tmp_path / "plain", [IndexRefresh(0, 50)], 100, max_epochs=1)
    assert "not averaged" not in caplog.text
    earlier, _ = train(tmp_path / "earlier", [WeightAverage(0.5), IndexRefresh(0, 50)], 100, max_epochs=1)
    assert "the run ended before step trainer.max_steps=100, so its weights are not averaged" in caplog.text
    assert all(torch.equal(weight, weights(plain)[name]) for name, weight in weights(earlier).items())


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.weight_average\.untrained=1\.5: from 0 .* to 1"):
        WeightAverage(1.5)
