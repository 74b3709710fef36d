"""Settings of the process."""

import gc
import weakref

import pytest

from dream.utils.runtime import fast_imports


@pytest.fixture
def collector():
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_only_during_imports(collector):
    with fast_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_a_failed_import_switches_the_collector_on_again(collector):
    with pytest.raises(ImportError), fast_imports():
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(collector):
    gc.disable()
    with fast_imports():
        pass
    assert not gc.isenabled()


def test_a_second_block_freezes_nothing(collector):
    class Cycle:
        pass

    with fast_imports():
        pass
    garbage = Cycle()
    garbage.itself = garbage
    alive = weakref.ref(garbage)
    del garbage
    with fast_imports():
        pass
    gc.collect()
    assert alive() is None
