"""Headers for the upstream: what a plugin sets is sent, beside what the relay says, and nothing else is."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.upstream_headers import MAX_BYTES, TAKEN, UpstreamHeaders

NAMES = st.text("abcXYZ019-_.!~", min_size=1, max_size=20).filter(lambda name: name.lower() not in TAKEN)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=50).map(str.strip)


def test_there_are_none() -> None:
    assert b"" == UpstreamHeaders().lines


def test_lines() -> None:
    """A name is set once, however it is written."""
    headers = UpstreamHeaders()
    headers["Traceparent"] = "00-1"
    headers["x-team"] = "a, b"
    headers["TRACEPARENT"] = "00-2"
    assert b"\r\ntraceparent: 00-2\r\nx-team: a, b" == headers.lines
    del headers["X-Team"]
    assert b"\r\ntraceparent: 00-2" == headers.lines
    assert {"traceparent": "00-2"} == dict(headers)
    assert "TraceParent" in headers
    assert 3 not in headers


@pytest.mark.parametrize("name", sorted(TAKEN))
def test_what_the_relay_says_is_its_own(name: str) -> None:
    """And so is what two servers on the way say to one another."""
    headers = UpstreamHeaders()
    with pytest.raises(ValueError, match="the relay itself sets"):
        headers[name.title()] = "1"
    assert b"" == headers.lines


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "a\n", "é", "a\0", "(a)"])
def test_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a header"):
        UpstreamHeaders()[name] = "1"


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\n", "\r", "canary\0", " canary", "canary\t", "é", "\ud800", "\x7f"])
def test_no_value(value: str) -> None:
    """The message does not quote it."""
    with pytest.raises(ValueError, match="the value of 'x-a' cannot stand in a head") as caught:
        UpstreamHeaders()["x-a"] = value
    assert "canary" not in str(caught.value)


def test_they_are_bounded() -> None:
    headers = UpstreamHeaders()
    headers["x-a"] = "a" * (MAX_BYTES // 2)
    headers["x-a"] = "b" * (MAX_BYTES // 2)
    with pytest.raises(ValueError, match="longer than 4,096 bytes"):
        headers["x-b"] = "a" * (MAX_BYTES // 2)
    assert len(headers.lines) <= MAX_BYTES


def test_values_are_not_shown() -> None:
    headers = UpstreamHeaders()
    headers["x-token"] = "secret"
    assert "<UpstreamHeaders x-token>" == repr(headers)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_any_headers_are_lines(given_: dict[str, str]) -> None:
    """Each stands on a line of its own."""
    headers = UpstreamHeaders()
    headers.update(given_)
    last = {name.lower(): value for name, value in given_.items()}
    lines = headers.lines.decode().split("\r\n")[1:]
    assert last == dict(re.fullmatch(r"([^:]+): (.*)", line).groups() for line in lines)
