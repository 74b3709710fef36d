"""The undisturbed run that every disturbed one is compared with."""

from typing import Any

import pytest
from tests.faults.kills import Undisturbed
from tests.faults.world import World


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Undisturbed:
    return Undisturbed.run(tmp_path_factory.mktemp("faults") / "undisturbed")


@pytest.fixture(scope="session")
def reference(undisturbed) -> World:
    return undisturbed.world


@pytest.fixture(scope="session")
def reference_result(undisturbed) -> dict[str, Any]:
    return undisturbed.result
