"""Some damages; two hundred: python -m tests.faults.damages. Run: pytest tests/faults/test_damage.py"""

import random

import pytest
from tests.faults.damages import Scene, damage_and_resume, fits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def scene(undisturbed, tmp_path_factory) -> Scene:
    return Scene.prepare(tmp_path_factory.mktemp("damages"), undisturbed)


@pytest.mark.parametrize(
    ("state", "pattern", "kind"),
    [
        ("stopped", "data/stores/*/*", "flip"),
        ("stopped", "logs/*/*/index/*/shard-*", "cut"),
        ("stopped", "logs/*/*/checkpoints/last.ckpt", "zero"),
        ("stopped", "logs/*/*/config.yaml", "delete"),
        ("stopped", "data/scorers/*/*", "directory"),
        ("stopped", "data/tokenizers/*/*", "unreadable"),
        ("killed while pretraining", "data/scorers/*.training/last.ckpt", "flip"),
        ("killed while refreshing", "logs/*/*/index/.*.partial/shard-*", "zero"),
        ("finished", "logs/*/*/summary.json", "cut"),
        ("finished", "logs/*/*/encoder/*", "unreadable"),
    ],
)
def test_damage_is_named_and_what_can_be_rebuilt_is(scene, state, pattern, kind):
    draw = random.Random(0)
    file = draw.choice([file for file in scene.files(state) if fits(file, (pattern,))])
    assert "ended bitwise equal" in damage_and_resume(scene, state, file, kind, draw)
