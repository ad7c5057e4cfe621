"""The guard of one reply, rule by rule: in which order frames leave, and what the gate looks at meanwhile."""

from collections.abc import Sequence
from typing import Any

import pytest
from guards import BAD, BLOCK, PASS, asked, choice, closed, feed, lexicon, out, passed, remote, said, whole

from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.window import Hit
from relay.testing import frames

# Order and progress


def test_frames_of_a_choice_leave_in_order_and_those_of_others_as_they_came() -> None:
    """A frame that waits keeps those behind it, whoever they are of."""
    guard = remote(choices=2)
    events = [frames.text("aaaa"), frames.role(index=1), frames.chunk([]), frames.finish(index=1), frames.finish()]
    feed(guard, *events)
    assert [] == out(guard)
    passed(guard)
    assert events == out(guard)


def test_when_the_guard_is_full_frames_pass_those_of_other_choices() -> None:
    """Never those of their own, nor a frame that belongs to both, nor one that belongs to none."""
    guard = remote(choices=3, held_bytes=10, depth=1)
    waits = frames.delta({"content": "aaaa"}, finish_reason="stop")
    feed(guard, waits, frames.role(index=1), frames.chunk([]), frames.role(), frames.finish(index=1))
    assert [frames.role(index=1), frames.finish(index=1)] == out(guard)
    both = frames.chunk([choice(0), choice(2)])
    feed(guard, both, frames.role(index=2))
    assert [] == out(guard)
    assert guard.wants_pause
    guard.judged(*asked(guard), PASS, 0.0)
    assert not guard.wants_pause
    guard.end(0.0)
    assert [waits, frames.chunk([]), frames.role(), both, frames.role(index=2)] == out(guard)


def test_text_that_is_cleared_passes_too() -> None:
    """In a guard that is full, whatever stands before it for another choice."""
    guard = remote(choices=2, held_bytes=400, depth=9)
    done = {"finish_reason": "stop"}
    feed(guard, frames.delta({"content": "aaaa"}, **done), frames.delta({"content": "bbbb"}, index=1, **done))
    _, second = asked(guard)
    guard.judged(second, PASS, 0.0)
    assert [(1, {"content": "bbbb"}, "stop")] == said(out(guard))
    assert not guard.wants_pause
    guard = lexicon(choices=2, held_bytes=len(frames.text("敏")))
    feed(guard, frames.text("敏"), frames.text("a", index=1))
    assert [frames.text("a", index=1)] == out(guard)


def test_no_window_is_forced_where_passing_makes_room() -> None:
    """A short window is paid for like a long one."""
    guard = remote(choices=2, held_bytes=len(frames.text("aa")), depth=9)
    feed(guard, frames.text("aa"), frames.role(index=1))
    assert [frames.role(index=1)] == out(guard)
    assert [] == asked(guard)


def test_a_guard_is_full_when_it_holds_more_than_it_may() -> None:
    """Not a byte before; and it pauses only then."""
    event = frames.text("aaaa")
    for held_bytes, full in ((len(event), False), (len(event) - 1, True)):
        guard = remote(held_bytes=held_bytes)
        feed(guard, event)
        assert full is guard.wants_pause is (asked(guard) != [])


def test_a_guard_that_stays_full_looks_for_room_only_now_and_then() -> None:
    """After a verdict, and when an eighth more has come: each look is at all that is held."""
    guard = remote(choices=2, held_bytes=10 * len(frames.role()), depth=1)
    feed(guard, frames.text("aaaa"), *[frames.role()] * 10)
    (window,) = asked(guard)
    assert guard.wants_pause
    feed(guard, frames.role(index=1))
    assert [] == out(guard)
    feed(guard, frames.role(index=1))
    assert [frames.role(index=1)] * 2 == out(guard)
    feed(guard, frames.role(index=1))
    assert [] == out(guard)
    guard.judged(window, PASS, 0.0)
    assert [frames.role(index=1)] == out(guard)


def test_a_full_guard_cuts_what_it_has_and_pauses_only_for_a_check() -> None:
    """The tail of K - 1 characters of another choice stands at the head of the queue and stops nothing."""
    guard = remote(choices=2, held_bytes=600, depth=1)
    feed(guard, frames.delta({"reasoning": "abc"}))
    assert [] == asked(guard)
    feed(guard, frames.text("d", index=1), frames.text("e", index=1))
    (window,) = asked(guard)
    assert "abc" == window.passage.copy
    assert guard.wants_pause
    feed(guard, frames.text("f", index=1))
    assert [] == asked(guard)  # one in flight is all there may be
    guard.judged(window, PASS, 0.0)
    (window,) = asked(guard)
    assert "def" == window.passage.copy
    guard.judged(window, PASS, 0.0)
    assert not guard.wants_pause
    assert "moderation_stalled" == guard.failure  # neither tail can move: 600 bytes are three frames


def test_a_guard_that_can_do_nothing_ends_the_reply() -> None:
    """It is full, nothing is in flight, nothing can leave: what is held is dropped."""
    guard = lexicon(held_bytes=1000)
    feed(guard, frames.text("x"), frames.text("敏"))
    assert [frames.text("x")] == out(guard)
    while guard.failure is None:
        feed(guard, frames.role())
        assert not guard.wants_pause
    assert "moderation_stalled" == guard.failure
    assert guard.over
    assert guard.finished
    assert [] == out(guard)
    feed(guard, frames.text("感词"))
    guard.tick(0.0)
    guard.end(0.0)
    assert [] == out(guard)


@pytest.mark.parametrize("large", [0, 1])
def test_one_frame_may_be_larger_than_all_there_is_room_for(large: int) -> None:
    """Be it the one that waits or one that waits behind it."""
    image = frames.delta({"content": "敏" if large == 0 else "", "image": "A" * 5000})
    events = [image, frames.text("好")] if large == 0 else [frames.text("敏"), image, frames.text("好")]
    assert events == whole(lexicon(held_bytes=1000), *events)


def test_a_short_tool_name_at_the_head_of_the_queue_stops_nothing() -> None:
    """Nor does the tail of reasoning before it; each is checked when the next surface begins."""
    events = [frames.delta({"reasoning_content": "ab"}), frames.tool(name="f"), frames.text("c" * 9), frames.finish()]
    guard = remote(depth=1, held_bytes=300)
    for event in events:
        feed(guard, event)
        passed(guard)
    guard.end(0.0)
    assert guard.failure is None
    assert events == out(guard)


def test_no_more_checks_are_in_flight_than_the_policy_allows() -> None:
    """The next window is cut when a verdict comes."""
    guard = remote(depth=2, choices=3)
    feed(
        guard,
        *(event for index in range(3) for event in (frames.text("aaaa", index=index), frames.finish(index=index))),
    )
    windows = asked(guard)
    assert 2 == len(windows) == guard.in_flight
    assert guard.deadline() is None
    guard.judged(windows[1], PASS, 0.0)
    assert 1 == len(asked(guard))
    assert 2 == guard.in_flight


def test_a_tick_cuts_what_has_waited_long_enough() -> None:
    """`deadline` says when; the earliest of all runs counts."""
    guard = remote(choices=2)
    assert guard.deadline() is None
    feed(guard, frames.text("a", index=1), now=2.0)
    feed(guard, frames.text("b"), now=1.0)
    assert 11.0 == guard.deadline()
    guard.tick(10.9)
    assert [] == asked(guard)
    guard.tick(11.0)
    assert ["b"] == [window.passage.copy for window in asked(guard)]
    assert 12.0 == guard.deadline()


# What the gate looks at


def test_a_guard_says_when_the_upstream_is_to_be_stopped() -> None:
    """When no choice is left."""
    guard = lexicon()
    assert not guard.finished
    assert not guard.over
    feed(guard, frames.text(BAD))
    assert guard.over


class Twice:
    """A scanner that finds two things at once, the later one first."""

    held = 0

    def feed(self, text: str) -> Sequence[Hit]:
        return [Hit(3, 4, "b", "block", "x"), Hit(1, 2, "a", "block", "x")]

    def finish(self) -> Sequence[Hit]:
        return ()


def test_the_first_of_several_hits_decides() -> None:
    """And is told first."""
    guard = Guard(Policy(), lambda: [Twice()])
    sent = whole(guard, frames.text("abcde"))
    assert closed() == said(sent)
    assert ["a", "b"] == [violation.label for violation in guard.tally.violations]


@pytest.mark.parametrize(
    ("options", "unverified"),
    [
        ({}, {"opaque": 300}),
        ({"opaque": "drop"}, {}),
        ({"unknown_fields": "pass"}, {"unknown_field": 303}),
        ({"unknown_fields": "drop"}, {}),
    ],
)
def test_what_an_option_lets_leave_unread_is_counted(options: dict[str, Any], unverified: dict[str, int]) -> None:
    """By the option, in characters: nothing leaves without a verdict and without a trace."""
    guard = Guard(Policy(**options))
    guard.feed(Chunk.event({"choices": [{"index": 0, "delta": {"extra": "abc", "signature": "A" * 300}}]}), 0.0)
    assert unverified == guard.tally.unverified()


def test_the_longest_wait_of_a_released_frame_is_known() -> None:
    """A frame that waited for a window until it passed; what leaves at once has not waited."""
    guard = Guard(Policy(), remote=True)
    guard.feed(Chunk.event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}), 1.0)
    assert 0.0 == guard.tally.longest_hold_s
    [window] = guard.checks
    guard.judged(window, PASS, 3.5)
    assert 2.5 == guard.tally.longest_hold_s


def test_nobody_is_shown_what_no_client_will_get() -> None:
    """A window of an ended run that waits when its choice is ended is not worth a call any more."""
    guard = remote(choices=2)
    feed(guard, frames.delta({"reasoning": "aaaa"}), frames.text("bbbb"), frames.text("x", index=1), frames.finish())
    reasoning, content = guard.checks
    assert "bbbb" == guard.show(content, 0.0)
    guard.judged(content, BLOCK, 0.0)
    assert "" == guard.show(reasoning, 0.0)
