"""The gradient of absent connections is the dense gradient whose entries at the connections are `values.grad`, whatever came before.

events.py plays what training scripts do on a sparse network and on a dense twin that holds all weights; twins.py compares.
"""

from collections import Counter

import pytest
from events import ODD, PLAIN, Backward, Event, Step, StepWithClosure
from hypothesis import given
from hypothesis import strategies as st
from twins import Trial

# A rewiring in the place of every step trains nothing, which is said; here it is what is wanted.
pytestmark = pytest.mark.filterwarnings("ignore:every step so far was a rewiring")

SETTINGS = st.fixed_dictionaries(
    {"masked": st.booleans(), "every": st.integers(1, 3), "moves": st.booleans(), "replaces_step": st.booleans(), "attached": st.booleans()}
)


def sequences(*tables: dict[str, list[Event]]) -> st.SearchStrategy[list[Event]]:
    """One to twelve events; half of them from the loop that all others disturb."""
    usual = st.sampled_from([Backward(), Backward(hidden=2), Step(), Step("zeros"), Backward(hidden=0)])
    of_all = st.sampled_from([event for table in tables for events in table.values() for event in events])
    return st.lists(st.one_of(usual, of_all), min_size=1, max_size=12)


def played(events: list[Event], every: int = 1, **settings: bool) -> Trial:
    """A trial of these events, and steps until one has been due."""
    trial = Trial(every=every, **settings)
    for event in [*events, *[Step()] * every]:
        trial.play(event)
    return trial


def among_others(event: Event) -> list[Event]:
    """The event alone, before, between and after backward passes, with a look after each."""
    return [event, Step(), event, Backward(), Step(), Backward(), event, Backward(), Step(), Backward(), event]


@pytest.mark.parametrize("masked", [False, True], ids=["sparse", "masked"])
@pytest.mark.parametrize("name", PLAIN)
def test_one_event_among_backward_passes(name, masked):
    for event in PLAIN[name]:
        assert played(among_others(event), masked=masked, moves=True).refused == 0


@pytest.mark.parametrize("masked", [False, True], ids=["sparse", "masked"])
@pytest.mark.parametrize("name", ODD)
def test_the_truth_or_an_error_that_names_the_layer(name, masked):
    for event in ODD[name]:
        for events in ([event], [event, Backward()], [Backward(), event]):  # an error ends a trial
            played(events, masked=masked)


def test_what_can_be_known_is_never_refused():
    counts: Counter[str] = Counter()

    @given(sequences(PLAIN), SETTINGS)
    def run(events, settings):
        trial = played(events, **settings)
        assert trial.refused == 0
        counts.update(compared=trial.compared)

    run()
    assert counts["compared"] > 300


def test_the_truth_or_an_error_after_anything():
    counts: Counter[str] = Counter()

    @given(sequences(PLAIN, ODD), SETTINGS)
    def run(events, settings):
        trial = played(events, **settings)
        counts.update(compared=trial.compared, refused=trial.refused)

    run()
    assert counts["compared"] > 5 * counts["refused"]


@pytest.mark.parametrize("replaces_step", [False, True], ids=["after the step", "in place of the step"])
@pytest.mark.parametrize("every", [1, 2])
def test_a_closure_under_attach_is_the_manual_loop(every, replaces_step):
    trial = played([StepWithClosure(), StepWithClosure(2), StepWithClosure()], attached=True, every=every, replaces_step=replaces_step)
    assert trial.compared
    assert trial.refused == 0
