"""Heads say what becomes of the connection, and where the body ends."""

import pytest
from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.http import HttpVersion
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from relay.head import BARE, Standard, head
from relay.request import Request


def lines(
    version: HttpVersion,
    keep: bool,
    length: int | None,
    *headers: tuple[str, str],
    status: int = 200,
    standard: Standard = BARE,
) -> tuple[str, dict[str, str], Request]:
    """The status line, the headers in lower case but for those of every reply, and the request. keep: as its client asks."""
    mocked = make_mocked_request("POST", "/", version=version)
    request = Request(mocked._message, mocked.content, mocked.protocol, None, keep)
    data = head(request, status, standard, CIMultiDict(headers), length)
    first, *rest = data.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert len({line.partition(": ")[0].lower() for line in rest}) == len(rest)
    return first, {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}, request


@pytest.mark.parametrize(
    ("version", "keep", "length", "said", "kept"),
    [
        (HttpVersion11, True, 3, {"content-length": "3"}, True),
        (HttpVersion11, True, None, {"transfer-encoding": "chunked"}, True),
        (HttpVersion11, False, 3, {"content-length": "3", "connection": "close"}, False),
        (HttpVersion10, False, 3, {"content-length": "3", "connection": "close"}, False),
        (HttpVersion10, True, 3, {"content-length": "3", "connection": "keep-alive"}, True),
        (HttpVersion10, True, None, {"connection": "close"}, False),
    ],
)
def test_the_connection(version: HttpVersion, keep: bool, length: int | None, said: dict[str, str], kept: bool) -> None:
    """A body without a length ends in chunks, or with its connection where those are not known."""
    first, headers, sent = lines(version, keep, length)
    assert first == f"HTTP/{version.major}.{version.minor} 200 OK"
    assert headers.pop("date").endswith(" GMT")
    assert headers.pop("server") == "relay"
    assert (headers, sent.keep_alive, sent.status) == (said, kept, 200)


def test_a_reply_may_end_its_connection() -> None:
    """By its own header."""
    for word in ("close", "Close"):
        _, headers, sent = lines(HttpVersion11, True, 0, ("Connection", word))
        assert (headers["connection"], sent.keep_alive) == (word, False)


def test_nobody_else_says_where_the_body_ends() -> None:
    """Two lengths, or a length and chunks, let two readers find two replies (RFC 9112, section 6.3)."""
    _, headers, _ = lines(HttpVersion11, True, None, ("Content-Length", "7"))
    assert "content-length" not in headers
    _, headers, _ = lines(HttpVersion11, True, 3, ("Content-Length", "7"), ("Transfer-Encoding", "chunked"))
    assert (headers["content-length"], "transfer-encoding" in headers) == ("3", False)


@pytest.mark.parametrize("version", [HttpVersion10, HttpVersion11])
@pytest.mark.parametrize("status", [204, 304])
def test_a_reply_without_a_body_says_nothing_of_one(version: HttpVersion, status: int) -> None:
    """Whoever believed it would wait for one (RFC 9112, section 6.1)."""
    given = (("Transfer-Encoding", "chunked"), ("Content-Length", "7"))
    for length in (None, 0):
        _, headers, sent = lines(version, True, length, *given, status=status)
        assert not headers.keys() & {"transfer-encoding", "content-length"}
        assert sent.keep_alive


def test_a_client_that_knows_no_chunks_is_told_of_none() -> None:
    """Whatever a plugin says."""
    _, headers, _ = lines(HttpVersion10, True, None, ("Transfer-Encoding", "chunked"))
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize(("status", "said"), [(404, "404 Not Found"), (299, "299 ")])
def test_statuses(status: int, said: str) -> None:
    """Those that nobody has named too."""
    assert lines(HttpVersion11, True, 0, status=status)[0] == f"HTTP/1.1 {said}"


@pytest.mark.parametrize("text", ["a\r\nb: c", "a\nb", "a\0b"])
def test_no_header_says_more_than_itself(text: str) -> None:
    """Line ends would begin another one."""
    for header in (("x-a", text), (text, "a")):
        with pytest.raises(ValueError, match=r"[Ff]orbidden|Newline"):
            lines(HttpVersion11, True, 0, header)


def test_what_every_reply_has() -> None:
    """Each has it once, in the word of whoever has set it, if anybody has."""
    standard = Standard({"Content-Type": "application/json"})
    _, headers, _ = lines(HttpVersion11, True, 3, standard=standard)
    assert (headers["content-type"], headers["server"]) == ("application/json", "relay")
    for name, text in (("content-type", "text/plain"), ("server", "another"), ("date", "today")):
        _, headers, _ = lines(HttpVersion11, True, 3, (name, text), standard=standard)
        assert headers[name] == text
        assert {"content-type", "server", "date", "content-length"} == headers.keys()


@pytest.mark.parametrize("length", [None, 3])
def test_what_is_said_twice_of_a_body_is_not_said(length: int | None) -> None:
    """However often a plugin says it: with two lengths, whoever stands in between may see two replies."""
    given = [(name, text) for name in ("Content-Length", "Transfer-Encoding") for text in ("7", "8")]
    _, headers, _ = lines(HttpVersion11, True, length, *given)
    said = {"content-length": "3"} if length else {"transfer-encoding": "chunked"}
    assert {name: text for name, text in headers.items() if name in ("content-length", "transfer-encoding")} == said
