"""What the benchmark's own figures rest on."""

from xml.etree import ElementTree

from bench.listener import at_share
from bench.picture import Point, bars, svg
from bench.rig import OVERLAP, seen
from bench.texts import chunks, reply


def windows(text: str, ends: list[int]) -> list[str]:
    return [text[max(0, start - OVERLAP) : end] for start, end in zip([0, *ends], ends, strict=False)]


def test_the_model_says_its_reply() -> None:
    for seed in range(50):
        text = reply(seed)
        assert "".join(chunks(text, seed)) == text == reply(seed)
        assert 900 <= len(text) < 1600
        assert 100 <= len(reply(seed, 100)) < 200


def test_what_was_shown_is_seen_and_nothing_else() -> None:
    for seed in range(50):
        text = reply(seed)
        shown = windows(text, [47, 120, 200, 290, *range(380, len(text), 85), len(text)])
        assert seen(text, text, shown) == len(text)
        assert seen(text, text, [shown[1], shown[0], shown[0], *shown[2:]]) == len(text)  # in any order, and again
        left_out = len(shown[4]) - OVERLAP
        assert seen(text, text, shown[:4] + shown[5:]) == len(text) - left_out
        assert seen(text[:100], text, shown) == 100
        assert seen(text[:100], text, shown[:1]) == 47


def test_a_share_of_the_characters_is_no_later_than() -> None:
    delays = [(0.1, 2), (0.2, 4), (0.9, 4)]
    assert at_share(delays, 0.5) == 0.2
    assert at_share(delays, 0.6) == 0.2
    assert at_share(delays, 0.99) == 0.9
    assert at_share([], 0.5) is None


def test_the_picture_is_a_picture() -> None:
    points = [Point("300 ms", 42.4, 0.46, 0.83), Point("2400 ms", 8.1, 1.17, 2.32)]
    picture = ElementTree.fromstring(svg(points, "title"))
    assert len(picture.findall("{*}circle")) == 4
    assert "42.4" in bars(points)
