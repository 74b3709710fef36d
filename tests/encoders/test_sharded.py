"""An encoder with divided weights gives the same results. Run: pytest tests/encoders/test_sharded.py"""

import signal

import pytest
import torch
from hydra import compose, initialize_config_dir
from tests.faults.rank_stops import RankWorld
from tests.faults.test_rank_stops import disturbed, scores
from tests.processes import run_ranks
from tests.test_cached_gradients import assert_same, bert, settings  # noqa: F401  the fixture
from tests.test_module_on_ranks import module_of, steps_of

from dream.build import build_text, check_config
from dream.encoders.sharded import ShardedEncoder, assembled, own_part, whole_encoder
from dream.utils import ranks
from dream.utils.errors import ConfigError
from dream.utils.runtime import CONFIG_DIR

AVERAGE = "+callbacks.weight_average={_target_: dream.callbacks.weight_average.WeightAverage, untrained: 0.5}"
FSDP = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")


def divided(overrides: list[str]) -> dict:
    """What one rank has of a divided encoder, and the first step's loss and gradient."""
    module, data = module_of(overrides)
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    before = module.encoder.fingerprint()
    module.sharded = ShardedEncoder(module.encoder, torch.device("cpu"))
    with whole_encoder(module) as encoder:
        after, sizes = encoder.fingerprint(), sum(weight.numel() for weight in encoder.parameters())
    left = sum(weight.numel() for weight in encoder.parameters())
    own = sum(own_part(weight).numel() for weight in module.encoder.parameters())
    loss = module.training_step(data.stream(ranks.rank(), ranks.world()).batch(0), 0)["loss"]  # type: ignore[attr-defined]
    loss.backward()
    weights = [weight for weight in module.encoder.parameters() if weight.requires_grad]
    gradient = torch.cat([assembled(weight.grad).flatten() for weight in weights])
    return {"fingerprints": (before, after), "share": own / sizes, "left": left,
            "step": (ranks.mean({"loss": loss})["loss"].item(), gradient)}  # fmt: skip


def test_two_ranks_have_half_of_the_weights_and_the_same_gradient(settings, tmp_path):  # noqa: F811
    overrides = settings["kl_posterior"]
    expected = steps_of(overrides, 1)
    results = run_ranks(2, tmp_path / "job", divided, overrides)
    assert sum(result["share"] for result in results) == pytest.approx(1)
    for result in results:
        assert result["fingerprints"][0] == result["fingerprints"][1]
        assert 0.4 < result["share"] < 0.6
        assert result["left"] == 0
        assert_same(expected, [result["step"]])


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [(), ("encoder.lora.rank=4",)], ids=["all weights", "adapter"])
def test_a_run_has_the_scores_of_ddp_and_resumes_bitwise(tmp_path, adapter):
    if adapter:
        pytest.importorskip("peft")
    own = ("encoder=hf", f"encoder.name={bert(tmp_path / 'bert', 0.1)}", "encoder.max_tokens=24",
           "~encoder.random_width", AVERAGE, *adapter)  # fmt: skip
    plain = RankWorld(tmp_path / "ddp", ("trainer=ddp", *FSDP[1:], "candidates.scored_windows=4", *own))
    worlds = [RankWorld(tmp_path / name, (*FSDP, *plain.overrides[4:])) for name in ("whole", "stopped")]
    for world in (plain, worlds[0]):
        assert world.run() == 0, world.output()[-3000:]
    assert scores(worlds[0].result()) == pytest.approx(scores(plain.result()), rel=1e-3)
    assert disturbed(worlds[1], 1, signal.SIGTERM) == 128 + signal.SIGTERM, worlds[1].output()[-3000:]
    assert worlds[1].run("ckpt=last") == 0, worlds[1].output()[-3000:]
    assert "other optimizer settings" not in worlds[1].output()
    assert worlds[1].result() == worlds[0].result()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder=static"], "encoder=static: trainer=fsdp divides the weights of transformers"),
        (["encoder.chunk=4"], "encoder.chunk=4: is not possible if weights are divided"),
        (["encoder.compile=true"], "encoder.compile=true: is not possible if weights are divided"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed: choose 32-true, bf16-mixed, auto"),
        (["callbacks.index_refresh.mode=background"], "callbacks.index_refresh.mode=background: is not possible"),
    ],
)
def test_what_does_not_work_is_refused_at_the_start(run_overrides, tmp_path, overrides, message):
    hf = ["encoder=hf", f"encoder.name={bert(tmp_path / 'bert')}", "encoder.max_tokens=24"]
    own = ["trainer=fsdp", *(hf if overrides != ["encoder=static"] else [])]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", [*run_overrides, f"paths.run={tmp_path}", *own, *overrides])
    with pytest.raises(ConfigError, match=message):
        checked(cfg)


def checked(cfg) -> None:
    check_config(cfg)
    build_text(cfg)
