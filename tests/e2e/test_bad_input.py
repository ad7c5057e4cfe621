"""Whatever a client sends, it gets a clear answer in our shape, the upstream hears nothing of it, and the next request is
served.

Bytes on bare connections: what is no HTTP, what two servers could read in two ways, what takes for ever, what is too
much, what is no chat request. `make test-long` measures how long each of the bodies holds up the loop.
"""

import asyncio
import gc
import json
import random
import socket
import time
import tracemalloc

import pytest

from relay.http import MAX_HEAD_BYTES, MAX_HEADERS
from relay.pure.request import MAX_BRACKETS, MAX_MARKS
from relay.testing import answers

ANSWERS = answers(["Hel", "lo"])
MODEL = b'"model":"gpt-3.5-turbo-1106"'
ASKED = MODEL + b',"messages":[{"role":"user","content":"canary-prompt"}]'
BODY = b"{%b}" % ASKED
LENGTH = b"Content-Length: %d" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nHost: relay\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1"
KEY = b"Authorization: Bearer KEY"
LIMIT = 2_097_152


def http(*headers, body=BODY, line=POST, host=b"Host: relay"):
    """A request; KEY stands for the key."""
    return b"\r\n".join([line, *([host] if host else []), KEY, *headers, b"", body])


def lengthened(length):
    return http(b"Content-Length: " + length)


def filled(head, unit, tail, size=LIMIT):
    """As many units between head and tail as make `size` bytes."""
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


@pytest.fixture
def reader():
    return "push"


@pytest.fixture
async def rig(serve):
    return await serve(ANSWERS)


class Client:
    """A bare connection that knows the key."""

    def __init__(self, rig, wire):
        self.rig = rig
        self.wire = wire
        self._key = rig.session.headers["Authorization"].removeprefix("Bearer ").encode()

    def send(self, data):
        self.wire.send(data.replace(b"Bearer KEY", b"Bearer " + self._key))

    async def refused(self, *, closed=False):
        """Status and code of an answer that refuses, after a look at its shape."""
        reply = await self.wire.reply()
        assert 400 <= reply.status < 500
        assert 32 == len(reply.headers["X-Request-Id"])
        assert "relay" == reply.headers["Server"]
        assert reply.error["message"]
        assert b"canary" not in reply.data
        assert 0 == self.rig.upstream.received
        if closed:
            assert b"" == await self.wire.rest()
        return reply.status, reply.error["code"]

    async def serves(self):
        """The same connection serves the next request, and nothing is between them."""
        self.send(http(LENGTH))
        reply = await self.wire.reply()
        assert (200, "Hello") == (reply.status, reply.texts()[0])


@pytest.fixture
def dial(rig):
    async def dial():
        return Client(rig, await rig.dial())

    return dial


# ---- What is no request, or would be two to another server: one answer, and the end of the connection ----

NO_REQUESTS = {
    # Request smuggling
    "CL.TE": http(LENGTH, CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "TE.CL": http(CHUNKED, b"Content-Length: 4", body=IN_CHUNKS + SMUGGLED),
    "TE.TE, another coding": http(CHUNKED, b"Transfer-Encoding: x", body=IN_CHUNKS + SMUGGLED),
    "TE.TE, another coding first": http(b"Transfer-Encoding: x", CHUNKED, body=IN_CHUNKS + SMUGGLED),
    "TE of an unknown coding": http(b"Transfer-Encoding: xchunked", body=IN_CHUNKS + SMUGGLED),
    "TE identity": http(b"Transfer-Encoding: identity", LENGTH, body=IN_CHUNKS + SMUGGLED),
    "TE chunked, then another": http(b"Transfer-Encoding: chunked, identity", body=IN_CHUNKS + SMUGGLED),
    "TE chunked twice": http(b"Transfer-Encoding: chunked,chunked", body=IN_CHUNKS + SMUGGLED),
    "TE with a parameter": http(b"Transfer-Encoding: chunked;x=y", body=IN_CHUNKS + SMUGGLED),
    "TE gzip, then chunked": http(b"Transfer-Encoding: gzip, chunked", body=IN_CHUNKS + SMUGGLED),
    "TE nothing, then chunked": http(b"Transfer-Encoding: , chunked", body=IN_CHUNKS + SMUGGLED),
    "TE of a request without a body": http(b"Transfer-Encoding: gzip, chunked", line=b"GET /v1/models HTTP/1.1", body=IN_CHUNKS + SMUGGLED),
    "TE in HTTP/1.0": http(CHUNKED, b"Connection: keep-alive", line=POST[:-1] + b"0", body=IN_CHUNKS + SMUGGLED),
    "TE in quotes": http(b'Transfer-Encoding: "chunked"', body=IN_CHUNKS + SMUGGLED),
    "TE after a vertical tab": http(b"Transfer-Encoding: \x0bchunked", body=IN_CHUNKS + SMUGGLED),
    "TE after a folded line": http(b"Transfer-Encoding:\r\n chunked", body=IN_CHUNKS + SMUGGLED),
    "TE behind a bare line feed": http(b"X: y\nTransfer-Encoding: chunked", LENGTH, body=BODY + SMUGGLED),
    "TE behind a bare carriage return": http(b"X: y\rTransfer-Encoding: chunked", LENGTH, body=BODY + SMUGGLED),
    "a space before the colon": http(b"Transfer-Encoding : chunked", LENGTH, body=IN_CHUNKS + SMUGGLED),
    "a space before the name": http(b" Transfer-Encoding: chunked", LENGTH, body=IN_CHUNKS + SMUGGLED),
    "two lengths": http(LENGTH, b"Content-Length: 5", body=BODY + SMUGGLED),
    "two lengths that agree": http(LENGTH, LENGTH, body=BODY + SMUGGLED),
    "no length": http(body=BODY + SMUGGLED),
    # Lengths
    **{
        f"a length of {length}": lengthened(length)
        for length in (b"-5", b"+5", b"0x5", b"5, 5", b"5,6", b"", b"5 5", b"1e3", b"9" * 20, b"5_0", b"5.0", b"5;", b'"5"', b"\xd9\xa5")
    },
    # Chunks
    "a chunk of hexadecimal with its prefix": http(CHUNKED, body=b"0x" + IN_CHUNKS),
    "a chunk with a sign": http(CHUNKED, body=b"+" + IN_CHUNKS),
    "a chunk of -1": http(CHUNKED, body=b"-1\r\n\r\n"),
    "a chunk of 2**68": http(CHUNKED, body=b"fffffffffffffffff\r\n"),
    "a chunk behind a space": http(CHUNKED, body=b" " + IN_CHUNKS),
    "a chunk with an empty extension": http(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b";\r\n", 1)),
    "a chunk with a line feed in its extension": http(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b';a="\n"\r\n', 1)),
    "chunks that end in bare line feeds": http(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b"\n")),
    "a chunk longer than it says": http(CHUNKED, body=IN_CHUNKS.replace(b"\r\n0", b"XX0")),
    "a length in the trailer": http(CHUNKED, body=IN_CHUNKS[:-2] + b"Content-Length: 5\r\n\r\n"),
    # Heads
    "bare line feeds": http(LENGTH).replace(b"\r\n", b"\n"),
    "bare carriage returns": http(LENGTH).replace(b"\r\n", b"\r"),
    "a folded header": http(b"X: a\r\n b", LENGTH),
    "NUL in a header": http(b"X: a\x00b", LENGTH),
    "NUL in the name of a header": http(b"X\x00: a", LENGTH),
    "a control character in a header": http(b"X: a\x01b", LENGTH),
    "DEL in a header": http(b"X: \x7f", LENGTH),
    "a space in the name of a header": http(b"X Y: a", LENGTH),
    "a header without a name": http(b": a", LENGTH),
    "a header without a colon": http(b"X", LENGTH),
    "no Host": http(LENGTH, host=None),
    "two Hosts": http(LENGTH, b"Host: other"),
    "two Hosts that agree": http(LENGTH, b"Host: relay"),
    # Targets
    "authority form": http(LENGTH, line=b"POST relay:80 HTTP/1.1"),
    "asterisk form": http(LENGTH, line=b"POST * HTTP/1.1"),
    "a target without a slash": http(LENGTH, line=b"POST v1/chat/completions HTTP/1.1"),
    "a target that is a query": http(LENGTH, line=b"POST ?x HTTP/1.1"),
    "NUL in the target": http(LENGTH, line=b"POST /v1/chat/completions\x00 HTTP/1.1"),
    "a byte in the target that is no ASCII": http(LENGTH, line=b"POST /v1/chat/completions\xff HTTP/1.1"),
    "an absolute form with a port that is none": http(LENGTH, line=b"POST http://relay:99999/v1/models HTTP/1.1"),
    # Versions and methods
    **{
        f"a version {version}": http(LENGTH, line=b"POST /v1/chat/completions" + version)
        for version in (b"", b" HTTP/0.9", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/1.1 ", b" http/1.1")
    },
    "a method in small letters": http(LENGTH, line=POST.replace(b"POST", b"post")),
    "NUL in a method": http(LENGTH, line=POST.replace(b"POST", b"PO\x00ST")),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space before everything": b" " + http(LENGTH),
}  # fmt: skip

TOO_LARGE = {
    "a header of 1 MB": http(LENGTH, b"X: " + b"canary-" * 150_000),
    "1 MB of headers": http(LENGTH, *(b"X-%d: %b" % (n, b"a" * 1000) for n in range(1000))),
    "1 MB of headers in as many lines as may be": http(LENGTH, *(b"X-%d: %b" % (n, b"a" * 8000) for n in range(MAX_HEADERS - 4))),
    "just more than may be": http(LENGTH, *(b"X: %b" % (b"a" * 8000) for n in range(MAX_HEAD_BYTES // 8000 + 1))),
    "ten thousand header lines": http(LENGTH, *(b"X-%d: y" % n for n in range(10_000))),
    "a target of 1 MB": http(LENGTH, line=b"POST /" + b"canary-" * 150_000 + b" HTTP/1.1"),
}  # fmt: skip


class TestNoRequests:
    @pytest.mark.parametrize("name", NO_REQUESTS)
    async def test_it_is_answered_once(self, rig, dial, name):
        """400, one line in the log, and nothing behind it on the connection is taken for a request."""
        client = await dial()
        client.send(NO_REQUESTS[name])
        assert (400, "bad_request") == await client.refused(closed=True)
        assert [("other", "bad_request", 400)] == [
            (line["operation"], line["code"], line["status"]) for line in rig.requests
        ]
        await (await dial()).serves()

    @pytest.mark.parametrize("name", TOO_LARGE)
    async def test_a_head_that_is_too_large(self, rig, dial, name):
        """431, of one line, of many, and of all together."""
        client = await dial()
        client.send(TOO_LARGE[name])
        assert (431, "headers_too_large") == await client.refused()
        client.wire.leave("reset")  # a megabyte that is not read may make the kernel do so on the other side
        await (await dial()).serves()

    async def test_a_head_that_is_just_not_too_large(self, rig, dial):
        """The limit is the last size that is taken."""
        given = sum(
            map(len, (b"Host", b"relay", b"Authorization", b"Bearer KEY", b"Content-Length", b"%d" % len(BODY)))
        )
        given += len(rig.session.headers["Authorization"]) - len(b"Bearer KEY")
        values = [8000] * 8
        values.append(MAX_HEAD_BYTES - given - sum(values) - 9)
        for size in (0, 1):
            client = await dial()
            client.send(http(LENGTH, *(b"X: %b" % (b"a" * value) for value in (*values[:-1], values[-1] + size))))
            assert (200, 431)[size] == (await client.wire.reply()).status


# ---- What looks odd and can be read in one way only ----

ODD = {
    "a chunk with an extension": http(CHUNKED, body=IN_CHUNKS.replace(b"\r\n", b";a=b\r\n", 1)),
    "a trailer": http(CHUNKED, body=IN_CHUNKS[:-2] + b"X-Checksum: y\r\n\r\n"),
    "many small chunks": http(CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"),
    "chunked in capitals": http(CHUNKED.upper(), body=IN_CHUNKS),
    "a length with zeros before it": http(b"Content-Length: 000%d" % len(BODY)),
    "empty lines before it": b"\r\n\r\n" + http(LENGTH),
    "a header that is no UTF-8": http(LENGTH, b"X: \xff"),
    "an offer of another protocol": http(LENGTH, b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQ"),
    "an expectation nobody knows": http(LENGTH, b"Expect: 200-ok"),
    "absolute form": http(LENGTH, line=b"POST http://relay/v1/chat/completions HTTP/1.1"),
    "a query": http(LENGTH, line=b"POST /v1/chat/completions?canary=%ff&x HTTP/1.1"),
    "a content coding that is none": http(LENGTH, b"Content-Encoding: identity"),
}  # fmt: skip

# Targets of well-formed requests → status and code.
TARGETS = {
    **{
        f"POST {path} HTTP/1.1": (404, "not_found")
        for path in (
            "/v1/../v1/chat/completions",
            "/v1/./chat/completions",
            "/v1/%2e%2e/v1/chat/completions",
            "/v1/%2e/chat/completions",
            "//v1/chat/completions",
            "/v1//chat/completions",
            "/v1/chat/completions/",
            "/v1/chat/completions;x",
            "/v1/chat/completions%00",
            "/v1/chat/completions%ff",
            "/v1/chat/completions%20",
            "/v1/chat/completions%0d%0aX:y",
            "/v1\\chat\\completions",
            "/v1/chat%5ccompletions",
            "/v1/chat/completions%3fx",
            "http://relay//v1/chat/completions",
            "http://relay/canary",
        )
    },
    "TRACE /v1/models HTTP/1.1": (405, "method_not_allowed"),
    "PUT /v1/chat/completions HTTP/1.1": (405, "method_not_allowed"),
}


class TestOdd:
    @pytest.mark.parametrize("name", ODD)
    async def test_it_is_served(self, rig, dial, name):
        """The upstream gets the body as it was meant, and the connection stands where the next request begins."""
        client = await dial()
        client.send(ODD[name])
        assert "Hello" == (await client.wire.reply()).texts()[0]
        assert [BODY] == [request.body for request in rig.upstream.requests]
        await client.serves()

    @pytest.mark.parametrize("line", TARGETS)
    async def test_a_path_is_spelled_in_one_way(self, dial, line):
        """Another spelling is another path: what stands before us may have let it pass for one."""
        client = await dial()
        client.send(http(LENGTH, line=line.encode()))
        assert TARGETS[line] == await client.refused()
        await client.serves()

    @pytest.mark.parametrize("path", ["/v1/chat%2fcompletions", "/v1/chat/%63ompletions"])
    async def test_a_path_has_no_escapes(self, dial, path):
        """The same, where the escapes say what might stand there without them."""
        client = await dial()
        client.send(http(LENGTH, line=f"POST {path} HTTP/1.1".encode()))
        assert (404, "not_found") == await client.refused()

    async def test_a_tunnel(self, rig, dial):
        """CONNECT is refused, and what comes through the tunnel is no request."""
        client = await dial()
        client.send(b"CONNECT relay:80 HTTP/1.1\r\nHost: relay\r\n\r\n")
        assert (404, "not_found") == await client.refused()
        client.send(b"canary\r\n\r\n")
        assert (400, "bad_request") == await client.refused(closed=True)

    @pytest.mark.parametrize(
        "coding",
        [
            b"Content-Encoding: gzip",
            b"Content-Encoding: br, gzip",
            b"Content-Encoding: identity\r\nContent-Encoding: gzip",
        ],
    )
    async def test_a_compressed_body(self, dial, coding):
        """415: nobody knows how much would come out of it."""
        client = await dial()
        client.send(http(coding, LENGTH))
        assert (415, "unsupported_media_type") == await client.refused()
        await client.serves()

    async def test_two_keys(self, dial):
        """Two Authorization headers, although they agree."""
        client = await dial()
        client.send(http(LENGTH, KEY))
        assert (400, "bad_request") == await client.refused()
        await client.serves()


# ---- Bodies ----

DEEP = 10_000
DIGITS = b"1234567890" * 6

# A body → the code of the 400 that it gets.
BODIES = {
    # No JSON
    "nothing": (b"", "invalid_json"),
    "a space": (b" ", "invalid_json"),
    "no JSON": (b"canary", "invalid_json"),
    "2 MB of NUL": (b"\0" * LIMIT, "invalid_json"),
    "2 MB of quotes": (b'"' * LIMIT, "invalid_json"),
    "2 MB of backslashes": (b"\\" * LIMIT, "invalid_json"),
    "2 MB of escaped quotes": (b'\\"' * (LIMIT // 2), "invalid_json"),
    "a second object": (BODY * 2, "invalid_json"),
    "a comma too many": (b"{%b,}" % ASKED, "invalid_json"),
    "a comment": (b"{%b/**/}" % ASKED, "invalid_json"),
    "NaN": (b'{%b,"x":NaN}' % ASKED, "invalid_json"),
    "Infinity": (b'{%b,"x":Infinity}' % ASKED, "invalid_json"),
    "minus Infinity": (b'{%b,"x":-Infinity}' % ASKED, "invalid_json"),
    "1e999": (b'{%b,"x":1e999}' % ASKED, "invalid_json"),
    "2 MB of digits": (filled(b'{%b,"x":' % ASKED, b"7", b"}"), "invalid_json"),
    "a number with a zero before it": (b'{%b,"x":01}' % ASKED, "invalid_json"),
    "a control character": (b'{%b,"x":"\x01"}' % ASKED, "invalid_json"),
    # No UTF-8
    "a byte that is no UTF-8": (b'{%b,"x":"\xff"}' % ASKED, "invalid_json"),
    "2 MB that is no UTF-8": (filled(b'{%b,"x":"' % ASKED, b"\xff", b'"}'), "invalid_json"),
    "half a character": (b'{%b,"x":"\xe4\xb8"}' % ASKED, "invalid_json"),
    "an overlong slash": (b'{%b,"x":"\xc0\xaf"}' % ASKED, "invalid_json"),
    "a surrogate in UTF-8": (b'{%b,"x":"\xed\xa0\x80"}' % ASKED, "invalid_json"),
    "a lone high surrogate": (b'{%b,"x":"\\ud83d"}' % ASKED, "invalid_json"),
    "a lone low surrogate": (b'{%b,"x":"\\udc00"}' % ASKED, "invalid_json"),
    "surrogates in the wrong order": (b'{%b,"x":"\\ude00\\ud83d"}' % ASKED, "invalid_json"),
    "a lone surrogate in a key": (b'{%b,"\\ud83d":1}' % ASKED, "invalid_json"),
    "UTF-16": (BODY.decode().encode("utf-16"), "invalid_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + BODY, "invalid_json"),
    # No object
    **{f"the JSON {text}": (text.encode(), "invalid_json") for text in ("null", "true", "1", '"x"', "[]", "[{}]")},
    # Too much of it
    "10,000 levels of lists": (b'{%b,"x":%b%b}' % (ASKED, b"[" * DEEP, b"]" * DEEP), "invalid_json"),
    "10,000 levels of objects": (b'{%b,"x":%b1%b}' % (ASKED, b'{"a":' * DEEP, b"}" * DEEP), "invalid_json"),
    "10,000 levels that nobody closes": (b'{%b,"x":%b' % (ASKED, b"[" * DEEP), "invalid_json"),
    "900 levels": (b'{%b,"x":%b%b}' % (ASKED, b"[" * 900, b"]" * 900), "invalid_json"),
    "2 MB of [": (b"[" * LIMIT, "invalid_json"),
    "2 MB of {": (b"{" * LIMIT, "invalid_json"),
    "2 MB of ]": (b"]" * LIMIT, "invalid_json"),
    "2 MB of []": (filled(b'{%b,"x":[' % ASKED, b"[],", b"[]]}"), "invalid_json"),
    '2 MB of "["': (filled(b'{%b,"x":[' % ASKED, b'"[",', b'""]}'), "invalid_json"),
    '2 MB of ":"': (filled(b'{%b,"x":[' % ASKED, b'":",', b'""]}'), "invalid_json"),
    "2 MB of ones": (filled(b'{%b,"x":[' % ASKED, b"1,", b"1]}"), "invalid_json"),
    "2 MB of floats": (filled(b'{%b,"x":[' % ASKED, b"1e5,", b"1]}"), "invalid_json"),
    "2 MB of keys": (b'{%b,%b}' % (ASKED, b",".join(b'"k%d":1' % n for n in range(150_000))), "invalid_json"),
    "2 MB of one key": (filled(b"{%b," % ASKED, b'"k":1,', b'"k":1}'), "invalid_json"),
    "half a million messages": (filled(b'{%b,"messages":[' % MODEL, b"{},", b"{}]}"), "invalid_json"),
    "a million messages that are none": (filled(b'{%b,"messages":[' % MODEL, b"0,", b"0]}"), "invalid_json"),
    # Keys that stand twice
    "a key twice": (b'{%b,"model":"x"}' % ASKED, "repeated_key"),
    "a key twice in a message": (b'{%b,"messages":[{"content":"a","content":"b"}]}' % MODEL, "repeated_key"),
    "a key twice deep inside": (b'{%b,"x":[{"a":[{"b":{"c":1,"c":2}}]}]}' % ASKED, "repeated_key"),
    "a key twice beside colons": (b'{%b,"y":":::","x":{"a":1,"a":":"}}' % ASKED, "repeated_key"),
    "a key twice, once in escapes": (b'{%b,"\\u006dodel":"x"}' % ASKED, "repeated_key"),
    "a key twice, in two cases of an escape": (b'{%b,"\\u00e9":1,"\\u00E9":1}' % ASKED, "repeated_key"),
    "a key twice, once in UTF-8": (b'{%b,"x":{"\xc3\xa9":1,"\\u00e9":1}}' % ASKED, "repeated_key"),
    "a key twice, with an escaped slash": (b'{%b,"x":{"a/b":1,"a\\/b":1}}' % ASKED, "repeated_key"),
    "an empty key twice": (b'{%b,"":1,"":2}' % ASKED, "repeated_key"),
    # Fields
    **{
        f"stream: {value}": (b'{%b,"stream":%b}' % (ASKED, value.encode()), "invalid_stream")
        for value in ('"yes"', '"true"', "1", "0", "[]", "{}", '""')
    },
    **{
        f"n: {value}": (b'{%b,"n":%b}' % (ASKED, value.encode()), "invalid_n")
        for value in ("0", "-1", "129", "9" * 60, "1.0", "true", '"1"', "[]")
    },
    **{
        f"messages: {value}": (b'{%b,"messages":%b}' % (MODEL, value.encode()), "invalid_messages")
        for value in ("null", "[]", "{}", '"canary"', "1", "[1]", "[[{}]]", "[null]", '[{"role":"user"},"canary"]')
    },
    "no messages": (b"{%b}" % MODEL, "invalid_messages"),
    "an empty object": (b"{}", "invalid_messages"),
}  # fmt: skip

# What may look bad and is not ours to judge: it goes on byte for byte.
GOOD = {
    "60 digits": b'{%b,"x":%b}' % (ASKED, DIGITS),
    "60 digits, negative, and nested": b'{%b,"x":[{"y":-%b}]}' % (ASKED, DIGITS),
    "60 digits behind the point": b'{%b,"x":0.%b}' % (ASKED, DIGITS),
    "a float of its own spelling": b'{%b,"x":1.0E+2,"y":-0.0,"z":1e-400}' % ASKED,
    "escapes of its own spelling": b'{%b,"x":"\\u0041\\/\\ud83d\\ude00\\u0000"}' % ASKED,
    "white space": b' \n{%b\t,\r\n"x" : [ 1 , 2 ]} ' % ASKED,
    "stream: null": b'{%b,"stream":null}' % ASKED,
    "a key that is nearly the same": b'{%b,"Stream":true,"model ":"y","m\xd0\xbedel":"z"}' % ASKED,
    "a prompt of 2 MB": filled(b'{%b,"messages":[{"role":"user","content":"' % MODEL, b"Hello, world: ", b'"}]}'),
    "a Chinese prompt of 2 MB": filled(b'{%b,"messages":[{"role":"user","content":"' % MODEL, "你好，世界。".encode(), b'"}]}'),
    "many brackets in a prompt": b'{%b,"messages":[{"role":"user","content":"%b"}]}' % (MODEL, b"[{:,\\\"" * 100_000),
    "as many values as there may be": b'{%b,"x":[%b1]}' % (ASKED, b"1," * (MAX_MARKS - 20)),
    "as many messages as there may be": b'{%b,"messages":[%b{}]}' % (MODEL, b'{"role":"user","content":"Hi: there"},' * ((MAX_MARKS - 20) // 5)),
    "as many lists as there may be": b'{%b,"x":[%b[]]}' % (ASKED, b"[]," * (MAX_BRACKETS - 5)),
}  # fmt: skip


class TestBodies:
    @pytest.mark.parametrize("name", BODIES)
    async def test_what_is_no_chat_request(self, dial, name):
        """400 with a code that says what is wrong."""
        body, code = BODIES[name]
        client = await dial()
        client.send(http(b"Content-Length: %d" % len(body), body=body))
        assert (400, code) == await client.refused()
        await client.serves()

    @pytest.mark.parametrize("value", ["null", "1", '""', "[]", '{"x":1}'])
    async def test_a_model_that_is_no_name(self, dial, value):
        """404, as for any other model that nobody serves."""
        body = b'{"model":%b,"messages":[{}]}' % value.encode()
        client = await dial()
        client.send(http(b"Content-Length: %d" % len(body), body=body))
        assert (404, "invalid_model") == await client.refused()
        await client.serves()

    @pytest.mark.parametrize("name", GOOD)
    async def test_what_is_one(self, rig, dial, name):
        """It goes on byte for byte."""
        client = await dial()
        client.send(http(b"Content-Length: %d" % len(GOOD[name]), body=GOOD[name]))
        assert "Hello" == (await client.wire.reply()).texts()[0]
        assert [GOOD[name]] == [request.body for request in rig.upstream.requests]
        await client.serves()

    @pytest.mark.parametrize("framing", ["counted", "chunked", "counted, but expected"])
    async def test_a_body_of_20_mb(self, rig, dial, framing):
        """413 while most of it is still on its way, or before any of it, and the connection is closed."""
        size, piece = 20_000_000, b"x" * 65_536
        client = await dial()
        match framing:
            case "counted":
                client.send(http(b"Content-Length: %d" % size, body=piece))
            case "chunked":
                client.send(http(CHUNKED, body=b""))
                for _ in range(LIMIT // len(piece) + 1):
                    client.wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            case _:
                client.send(http(b"Content-Length: %d" % size, b"Expect: 100-continue", body=b""))
        assert (413, "request_too_large") == await client.refused()
        client.wire.leave("reset")
        await (await dial()).serves()


# ---- What takes for ever ----


async def drip(client, data, stop):
    """Send a byte and another one, until the test has seen enough."""
    for byte in data:
        if stop.is_set():
            return
        client.wire.send(bytes([byte]))
        await asyncio.sleep(0.005)


class TestSlow:
    @pytest.mark.parametrize("first", [False, True], ids=["on a new connection", "after another request"])
    async def test_a_head_that_drips(self, dial, monkeypatch, first):
        """408 when its time is over, however often a byte comes."""
        monkeypatch.setattr("relay.http.HEAD_TIMEOUT_S", 0.1)
        client = await dial()
        if first:
            await client.serves()
            client.rig.upstream.received = 0
        stop = asyncio.Event()
        dripping = asyncio.create_task(drip(client, http(b"X: " + b"y" * 4000), stop))
        assert (408, "request_timeout") == await client.refused(closed=True)
        stop.set()
        await dripping

    @pytest.mark.parametrize(
        "sent", [b"G", b"GET /v1/models HTTP/1.1\r\nHost", b"GET /v1/models HTTP/1.1\r\nHost: relay\r\n"]
    )
    async def test_a_head_that_stops(self, dial, monkeypatch, sent):
        """The same."""
        monkeypatch.setattr("relay.http.HEAD_TIMEOUT_S", 0.1)
        client = await dial()
        client.send(sent)
        assert (408, "request_timeout") == await client.refused(closed=True)

    async def test_a_head_that_is_slow_but_comes(self, rig, dial):
        """It is a request like any other."""
        client = await dial()
        for part in (http(LENGTH)[:30], http(LENGTH)[30:60], http(LENGTH)[60:]):
            client.send(part)
            await asyncio.sleep(0.01)
        assert 200 == (await client.wire.reply()).status
        await client.serves()

    async def test_nothing_at_all(self, serve):
        """A connection without a request is closed without a word, empty lines or not."""
        rig = await serve(ANSWERS, server={"idle_timeout_s": 0.1})
        for sent in (b"", b"\r\n" * 10):
            wire = await rig.dial()
            wire.send(sent)
            assert b"" == await wire.rest()

    @pytest.mark.parametrize("framing", [LENGTH, CHUNKED])
    async def test_a_body_that_drips(self, serve, framing):
        """408 when its time is over, and the connection is closed."""
        rig = await serve(ANSWERS, server={"body_timeout_s": 0.1})
        client = Client(rig, await rig.dial())
        client.send(http(framing, body=b""))
        stop = asyncio.Event()
        body = b" " * len(BODY) if framing == LENGTH else b"1\r\n \r\n" * 1000
        dripping = asyncio.create_task(drip(client, body, stop))
        assert (408, "request_timeout") == await client.refused()
        stop.set()
        await dripping

    async def test_what_comes_after_the_answer_is_not_read_for_ever(self, rig, dial):
        """A refused request whose body goes on and on: its connection is given up."""
        client = await dial()
        client.send(http(b"Content-Length: 20000000", body=b""))
        assert (413, "request_too_large") == await client.refused()
        client.wire.leave("half")
        assert b"" == await client.wire.rest()


# ---- All of it at once ----


def mangled(chance):
    """A request with a few bytes deleted, doubled, swapped or replaced by ones that HTTP cares about."""
    kinds = (
        http(LENGTH),
        http(CHUNKED, body=IN_CHUNKS),
        b"GET /v1/models HTTP/1.1\r\nHost: relay\r\n" + KEY + b"\r\n\r\n",
    )
    data = bytearray(chance.choice(kinds) + chance.choice((b"", SMUGGLED)))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        match chance.randrange(4):
            case 0:
                del data[at : at + chance.randint(1, 8)]
            case 1:
                data[at:at] = data[at : at + chance.randint(1, 8)]
            case 2:
                data[at] = chance.choice(b'\r\n\t :;,\0\x0b\xff+-0123456789abcxX"{}[]')
            case _:
                data[at:at] = chance.choice(
                    (b"\r\n", b"\n", b"\r", b" ", b"0\r\n\r\n", CHUNKED + b"\r\n", b"Content-Length: 5\r\n")
                )
    return bytes(data)


async def heard(rig, data):
    """All answers to these bytes, up to the end of the connection."""
    client = Client(rig, await rig.dial())
    client.send(data)
    replies = []
    try:
        while True:
            replies.append(await client.wire.reply())
    except (asyncio.IncompleteReadError, ConnectionError):
        return replies


async def fuzz(serve, monkeypatch, seeds):
    for name in ("http.HEAD_TIMEOUT_S", "listener.LINGER_S"):
        monkeypatch.setattr(f"relay.{name}", 0.2)
    rig = await serve(ANSWERS, server={"body_timeout_s": 0.2, "idle_timeout_s": 0.4})
    seen = {}
    for start in range(0, len(seeds), 100):
        requests = [mangled(random.Random(seed)) for seed in seeds[start : start + 100]]
        for replies in await asyncio.gather(*(heard(rig, data) for data in requests)):
            for reply in replies:
                seen[reply.status] = seen.get(reply.status, 0) + 1
                assert 200 == reply.status or 400 <= reply.status < 500
                assert reply.headers["Content-Type"].startswith("application/json")
                assert 32 == len(reply.headers["X-Request-Id"])
                if reply.status != 200:
                    assert reply.error["code"]
    await rig.until(lambda: not rig.replies)
    assert seen.get(200, 0) >= rig.upstream.received
    for request in rig.upstream.requests:
        json.loads(request.body)
    return seen


async def test_mangled_requests(serve, monkeypatch):
    """Every answer to any of them is ours, and what gets through is whole."""
    seen = await fuzz(serve, monkeypatch, range(400))
    assert {200, 400, 401, 404, 408} <= set(seen)


@pytest.mark.long
async def test_many_mangled_requests(serve, monkeypatch, capsys):
    """The same for ten thousand."""
    seen = await fuzz(serve, monkeypatch, range(1000, 11_000))
    with capsys.disabled():
        print(f"\nmangled requests: {dict(sorted(seen.items()))}")


# ---- What stays ----

# Kinds of requests of 1 MB → the status of the answer, and where the upstream is.
KEPT = {
    "no key": (401, ANSWERS),
    "no JSON": (400, ANSWERS),
    "no upstream": (502, "http://127.0.0.1:9/v1"),
    "answered": (200, ANSWERS),
    "streamed": (200, ANSWERS),
}


@pytest.mark.parametrize("name", KEPT)
async def test_no_body_waits_for_the_collector(serve, open_chain, name):
    """What a request held is free when it has ended: a process collects so seldom that ten thousand of them would wait."""
    status, upstream = KEPT[name]
    rig = await serve(upstream, chain=open_chain)
    rig.loudest = "warning"  # an upstream that cannot be reached is told of
    headers = {"Authorization": "Bearer sk-nobody"} if name == "no key" else None
    size, count = 1_000_000, 8

    async def ask(length):
        body = filled(
            b'{%b,"stream":%b,"x":"' % (ASKED, b"true" if name == "streamed" else b"false"), b"a", b'"}', length
        )
        data = body[:-1] if name == "no JSON" else body
        async with rig.session.post(rig.chat_url, data=data, headers=headers) as response:
            assert status == response.status
            await response.read()
        if rig.upstream is not None:
            rig.upstream.requests.clear()

    await ask(1000)
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(count):
            await ask(size)
        await rig.ended(count + 1)
        await rig.until(lambda: not rig.app._tasks)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 3 * size


# ---- How long the loop stands still ----

BLOCKED_S = 0.02


class Probe:
    """The longest time between two looks at the clock that are due every millisecond."""

    def __init__(self):
        self.longest_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._last = time.perf_counter()
        self._handle = self._loop.call_later(0.001, self._look)

    def _look(self):
        now = time.perf_counter()
        self.longest_s = max(self.longest_s, now - self._last)
        self._last = now
        self._handle = self._loop.call_later(0.001, self._look)

    def stop(self):
        self._handle.cancel()
        return self.longest_s


def exchange(port, data):
    """Send bytes and read what comes, in a thread: of Python it needs next to nothing."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(data)
        got = b""
        while part := sock.recv(65_536):
            got += part
    return got


@pytest.mark.long
async def test_the_loop_never_stands_still(serve, open_chain, capsys):
    """No body that is refused holds up the streams of others for 20 ms, with moderation or without; the best of three."""
    table = {name: body for name, (body, _) in BODIES.items() if len(body) > 10_000}
    table["20 MB, counted"] = b"x" * 20_000_000
    table |= {name: body for name, body in GOOD.items() if len(body) > 10_000}
    longest = {}
    for chain in (open_chain, None):
        rig = await serve(ANSWERS, chain=chain)
        key = rig.session.headers["Authorization"].removeprefix("Bearer ").encode()
        for name, body in table.items():
            data = http(b"Content-Length: %d" % len(body), b"Connection: close", body=body).replace(b"KEY", key, 1)
            runs = []
            for _ in range(3):
                probe = Probe()
                # A refused body of 20 MB is not read to its end, and its connection may be reset.
                answer = asyncio.create_task(asyncio.to_thread(exchange, rig.relay.public_port, data))
                await asyncio.wait([answer])
                await asyncio.sleep(0.003)
                runs.append(probe.stop())
                assert isinstance(answer.exception(), ConnectionError) or answer.result().startswith(b"HTTP/1.1 ")
            longest.setdefault(name, []).append(min(runs))
    with capsys.disabled():
        print("\n| body | auth alone, ms | with moderation, ms |")
        for name, (alone, moderated) in longest.items():
            print(f"| {name} | {alone * 1000:.1f} | {moderated * 1000:.1f} |")
    assert [] == [name for name, runs in longest.items() if name not in GOOD and max(runs) >= BLOCKED_S]
