"""Which messages of a conversation stay when it has grown too long.

Always kept, whatever they cost: system and developer messages, and the newest turn. A *turn* is a user message with all
that follows it up to the next one; what stands before the first user message is a turn of its own. Of the other turns
the oldest go first, whole, until the rest fits; so what stays of them is the end of the conversation.

A tool call and its results are never split: where a result stands in a later turn than its call, those turns and all
between them stay or go together. A result answers the newest call before it that has its id and no answer yet, or if all
have one, the newest: some servers number the calls of every turn from zero. A result whose call is not there belongs to
the turn in which it stands.

What a message costs is the caller's to say, in as many measures as there are budgets. Each message is asked for at most
once, the always kept first, then the newest; those that cannot stay any more are not asked for. The time is linear in
the messages, however turns are joined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add, le
from typing import Any, Final, NamedTuple

Message = Mapping[str, Any]
Cost = tuple[float, ...]

# Tuples, because a role may be anything that JSON can say, and not all of that can be looked up in a set.
_ALWAYS: Final = ("system", "developer")
_RESULTS: Final = ("tool", "function")


class Trimmed(NamedTuple):
    """What is left. kept: the positions of the messages that stay, in order; cost: their sum, in every measure."""

    kept: list[int]
    cost: Cost


def trim(
    messages: Sequence[Message], cost: Callable[[Message], Cost], budget: Cost, max_turns: int | None = None
) -> Trimmed:
    """Keep what fits.

    cost: what a message costs, none of it negative; budget: what all together may cost, measure by measure.
    max_turns: how many turns may stay, the newest included.
    """
    always, turns, joined = _read(messages)
    nothing = (0.0,) * len(budget)
    spent = _plus(nothing, cost, messages, always)
    oldest = count = len(turns)  # of those that stay
    group = nothing  # turns that stay or go together
    for turn in range(count - 1, -1, -1):
        if oldest < count and (not _fits(spent, budget) or (max_turns is not None and count - turn > max_turns)):
            break
        group = _plus(group, cost, messages, turns[turn])
        if joined[turn]:
            continue
        total = tuple(map(add, spent, group))
        if oldest < count and not _fits(total, budget):
            break
        spent, group, oldest = total, nothing, turn
    first = turns[oldest][0] if oldest else 0
    return Trimmed([*(position for position in always if position < first), *range(first, len(messages))], spent)


def _read(messages: Sequence[Message]) -> tuple[list[int], list[list[int]], list[bool]]:
    """The positions that are always kept; those of each turn; of each turn, whether it goes with the one before it."""
    always: list[int] = []
    turns: list[list[int]] = []
    unanswered: defaultdict[object, list[int]] = defaultdict(list)  # by call, the turns it was made in
    answered: dict[object, int] = {}
    # By turn, how many more pairs reach over its beginning than over the one before.
    opened: defaultdict[int, int] = defaultdict(int)
    for position, message in enumerate(messages):
        role = message.get("role")
        if role in _ALWAYS:
            always.append(position)
            continue
        if role == "user" or not turns:
            turns.append([])
        here = len(turns) - 1
        turns[here].append(position)
        if role in _RESULTS:
            call = _answered(role, message)
            if unanswered.get(call):
                answered[call] = unanswered[call].pop()
            made = answered.get(call, here)
            if made < here:
                opened[made + 1] += 1
                opened[here + 1] -= 1
        elif "tool_calls" in message or "function_call" in message:
            for call in _calls(message):
                unanswered[call].append(here)
    return always, turns, [pairs > 0 for pairs in accumulate(opened[turn] for turn in range(len(turns)))]


def _calls(message: Message) -> Iterator[object]:
    """The calls that a message makes, as their answers name them."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict):
            yield "tool", _name(call.get("id"))
    legacy = message.get("function_call")
    if isinstance(legacy, dict):
        yield "function", _name(legacy.get("name"))


def _answered(role: str, message: Message) -> object:
    """The call that a result answers: by its id, or in the older API by the name of the function."""
    return role, _name(message.get("tool_call_id" if role == "tool" else "name"))


def _name(value: object) -> object:
    """An id to look up. JSON can say more than can be looked up; ids that are no strings differ if they read differently."""
    return value if isinstance(value, str) else (repr(value),)


def _plus(start: Cost, cost: Callable[[Message], Cost], messages: Sequence[Message], positions: Iterable[int]) -> Cost:
    for position in positions:
        start = tuple(map(add, start, cost(messages[position])))
    return start


def _fits(cost: Cost, budget: Cost) -> bool:
    return all(map(le, cost, budget))
