"""Which messages stay, against the rules as one would write them down without a care for time."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.trim import Cost, Message, trim

SYSTEM = {"role": "system", "content": "s"}


def user(content: str = "u") -> Message:
    return {"role": "user", "content": content}


def said(content: str = "a") -> Message:
    return {"role": "assistant", "content": content}


def called(*ids: object, **more: Any) -> Message:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": each, "type": "function"} for each in ids],
        **more,
    }


def result(id: object) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": "r"}


def one(message: Message) -> Cost:
    """Every message costs the same."""
    return (1.0,)


def kept(messages: Sequence[Message], budget: float, **options: Any) -> list[int]:
    return trim(messages, one, (budget,), **options).kept


# By example


@pytest.mark.parametrize(
    ("messages", "budget", "expected"),
    [
        pytest.param([user(), said(), user()], 3, [0, 1, 2], id="all fits"),
        pytest.param([user(), said(), user()], 2, [2], id="a turn goes whole"),
        pytest.param([user(), said(), user(), said(), user()], 4, [2, 3, 4], id="the oldest turn goes"),
        pytest.param([SYSTEM, user(), said(), SYSTEM, user(), said(), user()], 5, [0, 3, 4, 5, 6], id="system stays"),
        pytest.param([{"role": "developer"}, user(), user()], 1, [0, 2], id="developer stays"),
        pytest.param([user(), said(), said(), SYSTEM], 0, [0, 1, 2, 3], id="the newest turn stays"),
        pytest.param([said(), result(1), user(), said()], 3, [2, 3], id="what comes before all users is a turn"),
        pytest.param([said(), said(), SYSTEM], 1, [0, 1, 2], id="no user"),
        pytest.param([SYSTEM, SYSTEM], 1, [0, 1], id="system only"),
        pytest.param([], 1, [], id="nothing"),
        pytest.param([user(), {}, {"role": ["user"]}, {"role": None}, user()], 2, [4], id="odd roles"),
    ],
)
def test_turns(messages: list[Message], budget: int, expected: list[int]) -> None:
    """Whole turns go, oldest first; what is always kept stays at any cost."""
    assert expected == kept(messages, budget)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([user(), called("x"), result("x"), user()], [3], id="in one turn"),
        pytest.param([user(), called("x"), user(), result("x")], [0, 1, 2, 3], id="in two"),
        pytest.param([user(), user(), called("x"), user(), user(), result("x"), user()], [6], id="dropped together"),
        pytest.param([user(), called("x", "y"), user(), result("y"), result("x")], [0, 1, 2, 3, 4], id="interleaved"),
        pytest.param([user(), called("x"), result("x"), user(), result("x")], [0, 1, 2, 3, 4], id="answered twice"),
        pytest.param([user(), result("x"), user(), called("x")], [2, 3], id="a result before its call"),
        pytest.param([user(), called("y"), user(), result("x")], [2, 3], id="no call"),
        pytest.param([user(), result("x"), user(), result("x")], [2, 3], id="neither has a call"),
        pytest.param(
            [user(), called("0"), result("0"), user(), called("0"), result("0")], [3, 4, 5], id="numbered from zero"
        ),
        pytest.param([user(), called("0"), user(), called("0"), result("0")], [2, 3, 4], id="an old call left open"),
        pytest.param(
            [user(), called("0"), user(), called("0"), result("0"), result("0")], [0, 1, 2, 3, 4, 5], id="the same id twice"
        ),
        pytest.param([user(), called(None), user(), {"role": "tool"}], [0, 1, 2, 3], id="no ids"),
        pytest.param([user(), called(1), user(), result("1")], [2, 3], id="another type of id"),
        pytest.param([user(), called(["x"]), user(), result(["x"])], [0, 1, 2, 3], id="an id that is no id"),
        pytest.param([user(), called("x", role="user"), result("x")], [1, 2], id="called by a user"),
        pytest.param(
            [user(), {"role": "assistant", "function_call": {"name": "f"}}, user(), {"role": "function", "name": "f"}],
            [0, 1, 2, 3],
            id="function_call",
        ),
        pytest.param(
            [user(), {"role": "assistant", "function_call": {"name": "f"}}, user(), {"role": "function", "name": "g"}],
            [2, 3],
            id="of another function",
        ),
        pytest.param([user(), called("f"), user(), {"role": "function", "name": "f"}], [2, 3], id="of another kind"),
        pytest.param([user(), {"tool_calls": 1, "function_call": "f"}, {"tool_calls": ["x"]}, user()], [3], id="no calls"),
        pytest.param(
            [user(), called("x"), user(), result("x"), user(), called("y"), user(), result("y")], [4, 5, 6, 7], id="two pairs"
        ),
        pytest.param(
            [user(), called("x"), user(), called("y"), user(), result("x"), user(), result("y")],
            [0, 1, 2, 3, 4, 5, 6, 7],
            id="linked like a chain",
        ),
    ],
)  # fmt: skip
def test_calls(messages: list[Message], expected: list[int]) -> None:
    """Nothing fits here, so what stays is the newest turn and what it may not be parted from."""
    assert expected == kept(messages, 0)


@pytest.mark.parametrize(
    ("max_turns", "expected"),
    [(1, [5, 6]), (2, [0, 3, 4, 5, 6]), (3, [0, 1, 2, 3, 4, 5, 6]), (9, [0, 1, 2, 3, 4, 5, 6])],
)
def test_how_many_turns(max_turns: int, expected: list[int]) -> None:
    """The newest counts as one of them; a system message as none."""
    messages = [SYSTEM, user(), said(), user(), said(), user(), said()]
    assert (expected if max_turns > 1 else [0, *expected]) == trim(messages, lambda _: (), (), max_turns).kept


def test_turns_that_belong_together_count_each() -> None:
    """A call and its result two turns later are three turns: they stay if three may."""
    messages = [user(), called("x"), user(), user(), result("x"), user()]
    assert [5] == kept(messages, 9, max_turns=3)
    assert [0, 1, 2, 3, 4, 5] == kept(messages, 9, max_turns=4)


# By rule

IDS = st.sampled_from(["x", "y", None, 0])
MESSAGES = st.lists(
    st.one_of(
        st.just(SYSTEM),
        st.just({"role": "developer"}),
        st.builds(user),
        st.builds(said),
        st.lists(IDS, max_size=3).map(lambda ids: called(*ids)),
        IDS.map(result),
        IDS.map(lambda name: {"role": "assistant", "function_call": {"name": name}}),
        IDS.map(lambda name: {"role": "function", "name": name}),
        st.just({}),
    ),
    max_size=14,
)


def pairs(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """(position of a call, position of its result), looked for from each result backwards."""
    found: list[tuple[int, int]] = []
    answered: list[tuple[int, int]] = []  # calls: which message, which of its calls
    for position, message in enumerate(messages):
        if message.get("role") not in ("tool", "function"):
            continue
        legacy = message["role"] == "function"
        calls = [
            (before, number)
            for before in range(position - 1, -1, -1)
            for number, name in reversed([*enumerate(names(messages[before], legacy))])
            if name == message.get("name" if legacy else "tool_call_id")
        ]
        free = [call for call in calls if call not in answered]
        if free:
            answered.append(free[0])
            found.append((free[0][0], position))
        elif calls:
            found.append((next(call for call in reversed(answered) if call in calls)[0], position))
    return found


def names(message: Message, legacy: bool) -> list[object]:
    if legacy:
        return [message["function_call"].get("name")] if "function_call" in message else []
    return [call.get("id") for call in message.get("tool_calls", ())]


def is_always(message: Message) -> bool:
    return message.get("role") in ("system", "developer")


def expected(messages: Sequence[Message], costs: Sequence[float], budget: float, max_turns: int | None) -> list[int]:
    """The rules, as they stand at the head of the file."""
    spoken = [position for position, message in enumerate(messages) if not is_always(message)]
    begins = [position for position in spoken if messages[position].get("role") == "user" or position == spoken[0]]
    cuts = [cut for cut in begins if not any(call < cut <= answer for call, answer in pairs(messages))]

    def after(cut: int) -> list[int]:
        return [position for position, message in enumerate(messages) if position >= cut or is_always(message)]

    for cut in cuts[:-1]:
        turns = sum(begin >= cut for begin in begins)
        if sum(costs[position] for position in after(cut)) <= budget and (max_turns is None or turns <= max_turns):
            return after(cut)
    return after(cuts[-1] if cuts else 0)


COSTS = st.lists(st.integers(0, 5).map(float), min_size=14, max_size=14)


@given(MESSAGES, COSTS, st.integers(0, 40), st.none() | st.integers(1, 5))
def test_the_rules(messages: list[Message], costs: list[float], budget: int, max_turns: int | None) -> None:
    """What stays is what the rules say: no more, no less, in order, and its cost is theirs."""
    fresh = [dict(message) for message in messages]
    at = {id(message): position for position, message in enumerate(fresh)}
    asked: list[int] = []

    def cost(message: Message) -> Cost:
        asked.append(at[id(message)])
        return costs[at[id(message)]], 0.0

    done = trim(fresh, cost, (float(budget), 0.0), max_turns)
    assert expected(messages, costs, budget, max_turns) == done.kept
    assert (sum(costs[position] for position in done.kept), 0.0) == done.cost
    assert len(set(asked)) == len(asked)


@given(MESSAGES, COSTS, st.integers(0, 40), st.none() | st.integers(1, 5))
def test_what_is_trimmed_stays_as_it_is(
    messages: list[Message], costs: list[float], budget: int, max_turns: int | None
) -> None:
    """Trimmed again, to the same size, a conversation loses nothing more."""
    numbered = [{**message, "cost": cost} for message, cost in zip(messages, costs, strict=False)]

    def cost(message: Message) -> Cost:
        return (message["cost"],)

    left = [numbered[position] for position in trim(numbered, cost, (budget,), max_turns).kept]
    assert [*range(len(left))] == trim(left, cost, (budget,), max_turns).kept


@given(MESSAGES, COSTS, st.integers(0, 40), st.integers(0, 40))
def test_all_budgets_hold(messages: list[Message], costs: list[float], one: int, other: int) -> None:
    """With two measures the shorter of the two results stays."""
    numbered = [{**message, "cost": (cost, number)} for number, (message, cost) in enumerate(zip(messages, costs, strict=False))]  # fmt: skip
    both = trim(numbered, lambda message: message["cost"], (one, other)).kept
    each = [
        trim(numbered, lambda message: (message["cost"][0],), (one,)).kept,
        trim(numbered, lambda message: (message["cost"][1],), (other,)).kept,
    ]
    assert min(each, key=len) == both


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=3), below, max_size=2),
    max_leaves=4,
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "role": st.sampled_from(["user", "tool", "assistant", "function"]) | JSON,
                "tool_calls": JSON | st.lists(st.fixed_dictionaries({"id": JSON})),
                "tool_call_id": JSON,
                "function_call": JSON | st.fixed_dictionaries({"name": JSON}),
                "name": JSON,
            },
        ),
        max_size=6,
    ),
    st.integers(0, 6),
)
def test_no_message_does_harm(messages: list[Message], budget: int) -> None:
    """Whatever a message holds, something stays, and it is the end of the conversation."""
    stays = kept(json.loads(json.dumps(messages)), budget)
    assert (stays[-1:] == [len(messages) - 1]) is bool(messages)


# How much work it is


def turns(count: int) -> list[Message]:
    return [user(), said()] * (count // 2)


def test_only_what_may_stay_is_asked_for() -> None:
    """Of a long conversation the new end is looked at, and one turn more."""
    asked = []

    def cost(message: Message) -> Cost:
        asked.append(message)
        return (1.0,)

    assert 10 == len(trim(turns(1000), cost, (10.0,)).kept)
    assert 12 == len(asked)
    asked.clear()
    assert 2 == len(trim(turns(1000), cost, (1.0,)).kept)
    assert 2 == len(asked)


MANY = 100_000


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param(turns(MANY), id="short turns"),
        pytest.param([user()] + [said()] * MANY, id="one turn"),
        pytest.param([SYSTEM] * MANY + [user()], id="system messages"),
        pytest.param([user(), called("x"), user(), result("x")] * (MANY // 4), id="pairs"),
        pytest.param(
            [user(), called("x")] * (MANY // 4) + [user(), result("x")] * (MANY // 4), id="pairs around each other"
        ),
        pytest.param([user(), called("x")] + [user(), result("x")] * (MANY // 2), id="one call for all"),
        pytest.param([user(), called(*range(MANY)), *map(result, range(MANY))], id="many calls"),
    ],
)
def test_many_messages(messages: list[Message]) -> None:
    """A step or two for each, however they hang together: a step for every two of them would not end here."""
    stays = kept(messages, len(messages) / 2)
    assert len(messages) - 1 == stays[-1]
    assert len(stays) == len(messages) or len(stays) <= len(messages) / 2
