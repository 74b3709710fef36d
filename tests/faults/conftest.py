"""The undisturbed run that every disturbed one is compared with."""

from typing import Any

import pytest
from tests.faults.world import World, measure


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> tuple[World, float, int]:
    world = World.new(tmp_path_factory.mktemp("faults") / "reference")
    return world, *measure(world)


@pytest.fixture(scope="session")
def reference(measured) -> World:
    return measured[0]


@pytest.fixture(scope="session")
def reference_result(reference) -> dict[str, Any]:
    return reference.result()
