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
def test_what_was_made_meanwhile_is_searched_with_the_oldest_objects():
    gc.enable()
    with collector_paused():
        made = [[] for _ in range(10)]
    assert all(any(each is one for one in gc.get_objects(generation=2)) for each in made)
    assert gc.get_freeze_count() == 0
