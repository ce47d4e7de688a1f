"""When to act and how much, against numbers from the papers' formula."""

import pytest

from truesparse.topology.schedules import Periodic, cosine, cubic, remaining


def test_cosine():
    assert cosine(0.3, 0.0) == 0.3
    assert cosine(0.3, 1 / 3) == pytest.approx(0.225)  # 0.15 (1 + 1/2)
    assert cosine(0.3, 0.5) == pytest.approx(0.15)
    assert cosine(0.3, 2 / 3) == pytest.approx(0.075)
    assert cosine(0.3, 1.0) == 0.0
    assert cosine(0.3, 5.0) == 0.0
    assert cosine(0.3, -1.0) == 0.3


def test_cubic():
    # Zhu & Gupta's figure: 7/8 of the way at half of the time.
    assert [cubic(0.0, 0.8, progress) for progress in (-1.0, 0.0, 0.5, 1.0, 2.0)] == pytest.approx([0.0, 0.0, 0.7, 0.8, 0.8])
    assert cubic(0.5, 0.9, 0.5) == pytest.approx(0.85)
    assert cubic(0.1, 0.9, 1.0) == 0.9


def test_remaining():
    assert [remaining(100, 100, 0.8, progress) for progress in (0.0, 0.5, 1.0)] == [100, 30, 20]
    assert [remaining(500, 1000, 0.9, progress) for progress in (0.0, 0.5, 1.0)] == [500, 150, 100]
    assert remaining(7, 7, 0.5, 1.0) == 4, "3.5 to the nearest even number"
    assert remaining(48, 100, 0.5, 1.0, rounding=4) == remaining(48, 100, 0.5, 0.1, rounding=4) == 48, "a pattern had rounded down"
    assert remaining(0, 0, 0.9, 0.5) == 0
    with pytest.raises(ValueError, match="the layers begin with 48 connections of 100, fewer than the 50 that a sparsity of"):
        remaining(48, 100, 0.5, 0.1, rounding=1)


def test_periodic():
    schedule = Periodic(every=4, until=12)
    assert [step for step in range(1, 30) if schedule.due(step)] == [4, 8]
    assert [schedule.progress(step) for step in (0, 3, 6, 12, 20)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [step for step in range(1, 10) if Periodic(3, 9.5).due(step)] == [3, 6, 9]
    assert [step for step in range(1, 8) if Periodic(3).due(step)] == [3, 6]
    assert Periodic(3).progress(1000) == 0.0
    assert [step for step in range(1, 12) if schedule.last(step)] == [8, 9, 10, 11]
    assert [step for step in range(1, 7) if schedule.due_within(step, 2)] == [3, 4]
    assert not any(Periodic(1, 0).due(step) for step in range(1, 5))


def test_errors():
    for every in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="every must be a whole number of steps, at least 1, got"):
            Periodic(every)
    for until in (-1, float("nan")):
        with pytest.raises(ValueError, match="until must be a number of steps, at least 0, or None, got"):
            Periodic(1, until)
    for until in (0.75, 1e-9):
        with pytest.raises(ValueError, match=rf"until is a step, not a share of the training: pass until={until} \* total_steps"):
            Periodic(1, until)


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("until", [None, 0, 1, 2, 6.5, 7, 7.5, 8])
@pytest.mark.parametrize("replaces_step", [False, True])
def test_a_schedule_without_an_action_or_without_a_training_step_before_the_last_is_refused(every, until, replaces_step):
    schedule = Periodic(every, until)
    actions = [step for step in range(1, 100) if schedule.due(step)]
    if not actions:
        with pytest.raises(ValueError, match=f"no topology would ever change: .* step every={every}, and .* until={until}"):
            schedule.check_acts(replaces_step)
    elif replaces_step and until is not None and actions == list(range(1, len(actions) + 1)) and every == 1:
        with pytest.raises(ValueError, match=f"no weight would be trained before step until={until}: .* Pass every=2 or more"):
            schedule.check_acts(replaces_step)
    else:
        schedule.check_acts(replaces_step)
