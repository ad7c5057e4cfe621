"""Which requests a chain is for."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.match import Match

ANYTHING = {"route": "/v1/chat/completions", "caller": "school-1", "labels": {"tier": "free"}, "model": "gpt-4"}


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({"keys": ["school-1"]}, True),
        ({"keys": ["school"]}, False),
        ({"keys": ["school*"]}, True),
        ({"keys": ["school-1*"]}, True),
        ({"keys": ["work", "school-*"]}, True),
        ({"keys": ["s*"]}, True),
        ({"labels": {"tier": "free"}}, True),
        ({"labels": {"tier": "fr*"}}, True),
        ({"labels": {"tier": "free", "team": "*"}}, False),
        ({"models": ["gpt-*"]}, True),
        ({"models": ["GPT-*"]}, False),
        ({"models": ["gpt-*"], "keys": ["work"]}, False),
        ({"routes": ["/v1/*"]}, True),
        ({"routes": ["/ask"]}, False),
    ],
)
def test_what_fits(match: dict[str, object], fits: bool) -> None:
    """All that is written has to fit; of a list one."""
    assert msgspec.convert(match, Match).takes(**ANYTHING) is fits


def test_a_request_that_asks_no_model() -> None:
    """It fits no `models`, and whatever does not speak of them."""
    assert not Match(models=("*",)).takes(**{**ANYTHING, "model": None})
    assert Match(keys=("s*",)).takes(**{**ANYTHING, "model": None})


PATTERNS = st.lists(st.sampled_from(["*", "a", "a*", "ab", "ab*", "b", "b*"]), min_size=1, max_size=2).map(tuple)
MATCHES = st.builds(
    dict,
    keys=st.none() | PATTERNS.filter(lambda patterns: "*" not in patterns),
    labels=st.none() | st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["*", "a", "a*"]), min_size=1),
    models=st.none() | PATTERNS,
    routes=st.none() | PATTERNS,
).filter(lambda fields: any(value is not None for value in fields.values()))
WORDS = st.sampled_from(["", "a", "ab", "abc", "b", "ba"])
REQUESTS = st.fixed_dictionaries(
    {
        "route": WORDS,
        "caller": WORDS,
        "labels": st.dictionaries(st.sampled_from(["x", "y"]), WORDS),
        "model": st.none() | WORDS,
    }
)


@given(MATCHES, MATCHES, REQUESTS)
def test_what_is_covered(wide: dict[str, object], narrow: dict[str, object], request: dict[str, object]) -> None:
    """Who covers another takes all that it takes."""
    one, other = Match(**wide), Match(**narrow)
    if one.covers(other) and other.takes(**request):
        assert one.takes(**request)


@pytest.mark.parametrize("name", ["keys", "models", "routes", "labels"])
def test_what_is_not_covered(name: str) -> None:
    """Whatever it is that another one has to fit, it may be what this one does not take."""
    narrow = {"keys": ("a",), "models": ("a",), "routes": ("a",), "labels": {"x": "a"}}
    other: dict[str, object] = {name: {"x": "b"} if name == "labels" else ("b",)}
    assert Match(**narrow).covers(Match(**narrow))
    assert not Match(**narrow).covers(Match(**{**narrow, **other}))
    assert not Match(**narrow).covers(Match(**{**narrow, name: {"y": "a"} if name == "labels" else ("a*",)}))


@given(MATCHES)
def test_each_covers_itself(fields: dict[str, object]) -> None:
    assert Match(**fields).covers(Match(**fields))
