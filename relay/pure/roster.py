"""Which workers to start and which to let go, so that as many serve as are wanted, and what they run is what is wanted.

A generation is a configuration: workers of another one than the wanted are replaced one by one, each let go only when one
of the wanted serves in its place. So at no time fewer serve than before, but for those that die.

Pure: the supervisor tells what there is, does what it is told, and asks again after every change.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

# Of so many reloads there may be workers still, for replies that began on them.
MAX_FORMER: Final = 4

State = Literal["starting", "serving", "leaving"]


class Member(NamedTuple):
    """A worker that lives. number: unique among those that live."""

    number: int
    generation: int
    state: State


class Plan(NamedTuple):
    """What to do now. start: how many of the wanted generation. dismiss: numbers of those that are to leave."""

    start: int = 0
    dismiss: tuple[int, ...] = ()


def plan(members: Iterable[Member], generation: int, wanted: int) -> Plan:
    """What brings the members closer to `wanted` serving ones of `generation`."""
    staying = [member for member in members if member.state != "leaving"]
    new = [member for member in staying if member.generation == generation]
    old = [member for member in staying if member.generation != generation]
    starting = [member for member in new if member.state == "starting"]
    serving = len(new) - len(starting)

    # What has not begun to serve replaces nobody and is missed by nobody.
    dismissed = [member.number for member in old if member.state == "starting"]
    replaced = [member.number for member in old if member.state == "serving"]
    dismissed += replaced[: max(0, len(replaced) + serving - wanted)]
    # Fewer are wanted than before: those that serve stay, the oldest first.
    surplus = sorted(new, key=lambda member: (member.state == "serving", -member.number))
    dismissed += [member.number for member in surplus[: max(0, len(new) - wanted)]]

    missing = max(0, wanted - len(new))
    if replaced:  # one by one, each a trial of what is new
        missing = 0 if starting else min(missing, 1)
    return Plan(missing, tuple(dismissed))


def outstayed(members: Iterable[Member]) -> list[int]:
    """The numbers of those that leave and have had their time: all but those of the latest generations."""
    leaving = [member for member in members if member.state == "leaving"]
    former = sorted({member.generation for member in leaving})
    return [member.number for member in leaving if member.generation in former[:-MAX_FORMER]]


def free_number(members: Iterable[Member]) -> int:
    """The lowest number that no member has; so the numbers stay below the most members that there ever were at once."""
    taken = {member.number for member in members}
    return next(number for number in range(len(taken) + 1) if number not in taken)


def wait_s(deaths: int, first_s: float, max_s: float) -> float:
    """How long to wait before another worker is started after so many deaths in a row: none after the first."""
    # The exponent is bounded: nobody waits longer, and a float would overflow.
    return 0.0 if deaths <= 1 else min(max_s, first_s * 2.0 ** min(deaths - 2, 30))
