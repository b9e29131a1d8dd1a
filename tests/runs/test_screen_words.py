import pytest

from gradfiltering.runs.screen_words import describe_duration, describe_time_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (2.34, "2.3 s"), (45.2, "45 s"), (98.7, "99 s"), (120, "2 min"), (5940, "99 min"),
     (6000, "1 h 40 min"), (90000, "25 h 0 min")],
)  # fmt: skip
def test_durations_are_written_as_people_say_them(seconds, words):
    assert describe_duration(seconds) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s left"), (9.4, "9 s left"), (61, "61 s left")])
def test_time_left_has_no_tenths_of_a_second(seconds, words):
    assert describe_time_left(seconds) == words
