"""When to act and how much, against numbers from the papers' formula."""

import pytest

from truesparse.schedules import Periodic, cosine


def test_cosine():
    assert cosine(0.3, 0.0) == 0.3
    assert cosine(0.3, 1 / 3) == pytest.approx(0.225)  # 0.15 (1 + 1/2)
    assert cosine(0.3, 0.5) == pytest.approx(0.15)
    assert cosine(0.3, 2 / 3) == pytest.approx(0.075)
    assert cosine(0.3, 1.0) == 0.0
    assert cosine(0.3, 5.0) == 0.0
    assert cosine(0.3, -1.0) == 0.3


def test_periodic():
    schedule = Periodic(every=4, until=12)
    assert [step for step in range(1, 30) if schedule.due(step)] == [4, 8]
    assert [schedule.progress(step) for step in (0, 3, 6, 12, 20)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [step for step in range(1, 10) if Periodic(3, 9.5).due(step)] == [3, 6, 9]
    assert [step for step in range(1, 8) if Periodic(3).due(step)] == [3, 6]
    assert Periodic(3).progress(1000) == 0.0
    assert not any(Periodic(1, 0).due(step) for step in range(1, 5))


def test_errors():
    for every in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="every must be a whole number of steps, at least 1, got"):
            Periodic(every)
    for until in (-1, float("nan")):
        with pytest.raises(ValueError, match="until must be a number of steps, at least 0, or None, got"):
            Periodic(1, until)
