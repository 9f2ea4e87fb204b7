"""The search for garbage pauses where it would find none, and only there."""

import gc

import pytest
from automodel.garbage import collector_paused


@pytest.fixture
def collector():
    yield
    gc.enable()


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_afterwards_as_it_was_before(enabled):
    (gc.enable if enabled else gc.disable)()
    with pytest.raises(ValueError), collector_paused():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled() == enabled


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("all_stays", [False, True])
def test_what_stays_is_searched_with_the_oldest_objects_unless_others_have_frozen_some(all_stays, frozen):
    gc.enable()
    if frozen:
        gc.freeze()
    before = gc.get_freeze_count()
    try:
        with collector_paused(all_stays=all_stays):
            made = [[] for _ in range(10)]
        oldest = {id(each) for each in gc.get_objects(generation=2)}
        assert {id(each) in oldest for each in made} == {all_stays and not frozen}
        assert gc.get_freeze_count() == before
    finally:
        gc.unfreeze()
