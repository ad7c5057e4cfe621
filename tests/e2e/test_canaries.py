"""What is secret stays secret on every way that a request, a start or a command can fail; and each request has one line.

Every secret and every text of a client's holds a canary: a row of letters that stands nowhere else. A real `relay serve` with
the whole chain is driven through all of its errors (`CASES`), and then everything that it has said is searched: its log and
what it wrote to standard error, metrics, events, the admin listener's answers, the answers to clients, and what stands in
the table of processes. What a client may see of its own request is said case by case (`echo`).
"""

import asyncio
import base64
import json
import os
import re
import secrets
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import servers
from click.testing import CliRunner

from relay.assembly import assemble
from relay.cli import main
from relay.config import parse
from relay.metrics.families import OTHER, REFUSALS, UNJUDGED, UPSTREAM_ERRORS
from relay.serve import allow_many_files
from relay.testing import (
    Abort,
    Close,
    Gate,
    Hang,
    Head,
    Pause,
    Raw,
    Repeat,
    Script,
    ScriptedUpstream,
    Send,
    frames,
    refused,
    whole,
)
from relay_plugins.tencent.fake import Fake

PATIENCE_S = 60.0
SHORT_S = 0.6
FORBIDDEN = "forbidden fruit"
FORBIDDEN_BY_TENCENT = "blackmarketword"
CHAT = "/v1/chat/completions"

allow_many_files()


class Canaries(dict):
    """Name → canary. Of each a piece of eight letters is enough to know it again, also in base64."""

    def __missing__(self, name):
        self[name] = "".join(secrets.choice(string.ascii_letters) for _ in range(24))
        return self[name]

    def in_(self, said):
        """The names of those that stand in bytes or a text."""
        data = said if isinstance(said, bytes) else said.encode("utf-8", "replace")
        return {name for name, canary in self.items() if any(piece in data for piece in _pieces(canary))}


def _pieces(canary):
    plain = canary.encode()
    yield from (plain[start : start + 8] for start in range(0, len(plain) - 7, 4))
    # Nine bytes are twelve letters of base64, if they begin at a multiple of three.
    yield from (base64.b64encode(plain[start : start + 9]) for start in range(3))


# The world


CONFIG = """\
[server]
port = 0
workers = {workers}
body_timeout_s = 0.5
max_body_bytes = 1000000
drain_s = 30
[admin]
port = 0
token = "{admin_token}"
[store]
url = "{store}"
timeout_ms = 2000
[[upstreams]]
name = "first"
base_url = "{base_url}/{upstream_path}"
api_key = "{upstream_key}"
models = ["known", "*"]
first_byte_timeout_s = {short_s}
idle_timeout_s = {short_s}
[[upstreams]]
name = "second"
base_url = "{base_url}/{upstream_path}"
api_key = "sk-{second_upstream_key}"
models = {{ "*" = "*" }}
priority = 1
first_byte_timeout_s = {short_s}
idle_timeout_s = {short_s}
[[upstreams]]
name = "closed"
base_url = "http://127.0.0.1:9/{upstream_path}"
api_key = "sk-{second_upstream_key}"
models = ["closed"]
priority = -1
[[plugins]]
use = "auth"
keys = [{{ name = "k", key = "sk-{client_key}" }}]
[[plugins]]
use = "bingcheng"
[[plugins]]
use = "parameters"
[[plugins]]
use = "rate_limit"
requests_per_minute = 100000
[[plugins]]
use = "quota"
grant = 200000
[[plugins]]
use = "moderation"
held_bytes = 4096
deadline_ms = 1000
cache_s = 0
moderators = [
  {{ use = "lexicon", words = ["{forbidden}", "{lexicon_word}"] }},
  {{ use = "tencent", secret_id = "AKID{tencent_id}", secret_key = "{tencent_key}", endpoint = "{tencent}" }},
  {{ use = "talkative:Talker" }},
]
[[plugins]]
use = "history"
max_chars = 300000
[[plugins]]
use = "talkative:Talkative"
"""


class World:
    """A relay in a process of its own, all that it talks to, and all that it has said.

    answers: what clients and operators were answered, with the case and what that may hold of its own request. unlike: the
    cases that were answered otherwise than the table says.
    """

    def __init__(self, folder, canaries, upstream, fake, redis):
        self.folder, self.canaries, self.upstream, self.fake, self.redis = folder, canaries, upstream, fake, redis
        self.said = b""  # by the process: log and standard error
        self.lines = []  # of the log
        self.odd = []  # what is no line of the log
        self.answers = []
        self.unlike = []
        self.asked = self.open = 0  # requests so far, and those of them that are left open
        self.go = asyncio.Event()

    async def start(self, stack, **environ):
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve", "--log-level", "debug"),
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **environ},
        )
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        stack.push_async_callback(self._end)
        await self.until(lambda: self.events("serving"))
        started = self.events("serving")[0]
        self.port, self.admin_port = started["port"], started["admin_port"]
        self.client = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S), cookie_jar=aiohttp.DummyCookieJar())
        )

    async def _read(self):
        while line := await self.process.stdout.readline():
            self.said += line
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.odd.append(line.decode())
            self._news.set()
            self._news = asyncio.Event()

    async def _end(self):
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self._reading

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert not self._reading.done(), self.said.decode()
                await self._news.wait()

    def events(self, name):
        return [line for line in self.lines if line["event"] == name]

    @property
    def requests(self):
        return self.events("request")

    # Asking

    def body(self, words="", **fields):
        """A chat request that is full of canaries; `words` say in the last message what is to become of it."""
        can = self.canaries
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": can["tool"]})}}
        messages = [
            {"role": "system", "content": can["system"]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": can["tool_result"]},
            {"role": "user", "name": can["name"], "content": f"{can['prompt']} {words}", can["field"]: can["value"]},
        ]
        model = "m" * 64 + can["model"]
        return {"model": model, "stream": False, "messages": messages, "user": can["user"], **fields}

    async def post(self, words="", *, raw=None, path=CHAT, key=None, method="POST", headers=(), **fields):
        """Ask."""
        self.asked += 1
        can = self.canaries
        given = {
            "Authorization": f"Bearer {key or 'sk-' + can['client_key']}",
            "Cookie": f"session={can['cookie']}",
            "X-Canary": can["header"],
            "X-Request-Id": can["request_id"],
            "User-Agent": can["user_agent"],
            "Content-Type": "application/json",
            **dict(headers),
        }
        data = json.dumps(self.body(words, **fields)).encode() if raw is None else raw
        url = f"http://127.0.0.1:{self.port}{path}?q={can['query']}"
        async with self.client.request(method, url, data=data, headers=given) as response:
            said = await response.read()
            heads = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
            return Answer(response.status, heads.encode() + b"\n\n" + said, said)

    async def wire(self, data, *, half=False):
        """Bytes on a connection of their own, and the answer; `half`: the client is gone after them."""
        self.asked += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        if half:
            await writer.drain()
            writer.transport.abort()
            return Answer(0, b"", b"")
        async with asyncio.timeout(PATIENCE_S):
            heads = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(re.search(rb"(?i)content-length: (\d+)", heads)[1]))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return Answer(int(heads.split(b" ")[1]), heads + body, body)

    async def admin(self, method, path, *, token=None, **options):
        """Ask the admin listener."""
        given = {"Authorization": f"Bearer {token or self.canaries['admin_token']}"}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with self.client.request(method, url, headers=given, **options) as response:
            said = await response.read()
            heads = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
            return Answer(response.status, heads.encode() + b"\n\n" + said, said)

    async def new_key(self, name, **fields):
        """A key of the store, and its secret: the one place where it is ever said."""
        answer = await self.admin("POST", "/admin/keys", json={"name": name, **fields})
        assert answer.status == 201, answer.said
        secret = json.loads(answer.body)["secret"]
        self.canaries[f"secret of {name}"] = secret[-24:-4]
        return secret

    # What the upstream does

    def script(self, request):
        can = self.canaries
        said = str(request.json)
        echo = json.dumps(request.json)
        how = (re.findall(r"upstream:(\w+)", said) or ["fine"])[-1]
        header = (("X-Upstream", can["upstream_header"]), ("Set-Cookie", f"a b{{{can['upstream_cookie']}}}@=1"))
        reply = can["reply"]
        error = frames.error_body(f"{can['upstream_error']} {echo} {request.header('authorization')}")
        match how:
            case "fine" if request.streams:
                return Script(
                    Head(headers=(("Content-Type", "text/event-stream"), *header)), *map(Send, frames.stream([reply]))
                )
            case "fine":
                return whole(frames.body(reply), header)
            case "says":
                return whole(frames.body(f"{reply} {FORBIDDEN}"), header)
            case "says_tencent":
                return Script(Head(), Send(b"".join(frames.stream([f"{reply} {FORBIDDEN_BY_TENCENT} ."]))))
            case "breaks_moderator":
                return Script(Head(), Send(b"".join(frames.stream([f"{reply} break:moderator ."]))))
            case "breaks_feed":
                return Script(Head(), Send(b"".join(frames.stream([f"{reply} break:feed ."]))))
            case "stalls":  # the head of a phrase is held, and nothing that comes after it lets it go
                return Script(Head(), Send(frames.text(can["lexicon_word"][:12]) + frames.role() * 40), Hang())
            case "blames":
                known = {
                    "message": can["blame"],
                    "type": "invalid_request_error",
                    "param": "p",
                    "code": "context_length",
                }
                return refused(400, json.dumps({"error": known}).encode())
            case "quotes":
                key = request.header("authorization").removeprefix("Bearer ")
                known = {"message": f"{can['blame']} {key}", "type": key, "param": key, "code": key}
                return refused(400, json.dumps({"error": known}).encode())
            case "names":
                known = {"message": can["blame"], "type": "x", "param": None, "code": f"no {can['upstream_code']} here"}
                return refused(400, json.dumps({"error": known}).encode())
            case "html":
                return whole(f"<html>{reply}".encode(), header, content_type="text/html")
            case "nothing":
                return Script(Head())
            case "reset":
                return Script(Abort())
            case "silence":
                return Script(Hang())
            case "half":
                return Script(Head(), Send(frames.text(reply)), Abort())
            case "idle":
                return Script(Head(), Send(frames.role() + frames.text(reply)), Hang())
            case "garbage":
                return Script(Head(), Send(frames.text(reply)), Send(frames.data(reply)), Hang())
            case "not_http":
                return Script(Raw(f"{reply} is no HTTP\r\n\r\n".encode()), Close())
            case "reports":
                return Script(Head(), Send(frames.text(reply)), Send(frames.data(error)))
            case "mutters":
                return Script(Head(), Send(frames.role()), Repeat((Send(frames.comment("well")), Pause(0.1))))
            case "waits":
                return Script(Head(), Send(frames.role()), Gate(self.go), *map(Send, frames.stream([reply])[1:]))
            case status:
                return refused(int(status), error, header)


@dataclass(frozen=True)
class Answer:
    """status; said: all of it, heads and body; body."""

    status: int
    said: bytes
    body: bytes

    @property
    def code(self):
        """The code of the error that it is, or that ends it; None without one."""
        data = self.body.split(b"data: ")[-2] if b"data: [DONE]" in self.body else self.body
        with suppress(ValueError, KeyError, TypeError):
            return json.loads(data)["error"]["code"]
        return None


@pytest.fixture
async def world(tmp_path, monkeypatch):
    """`await world()`: one that serves."""
    async with AsyncExitStack() as stack:
        canaries = Canaries()
        monkeypatch.setattr(servers, "PASSWORD", canaries["redis_password"])

        async def make(*, workers=1, environ=()):
            redis = await asyncio.to_thread(stack.enter_context, servers.valkey_tcp())
            fake = await stack.enter_async_context(
                Fake(
                    secret_id=f"AKID{canaries['tencent_id']}",
                    secret_key=canaries["tencent_key"],
                    words=[{"word": FORBIDDEN_BY_TENCENT}],
                )
            )
            world = World(tmp_path, canaries, None, fake, redis)
            world.upstream = await stack.enter_async_context(ScriptedUpstream(world.script))
            values = {
                name: canaries[name]
                for name in (
                    *("admin_token", "upstream_key", "second_upstream_key", "upstream_path", "client_key"),
                    *("tencent_id", "tencent_key", "lexicon_word"),
                )
            }
            values |= {"base_url": world.upstream.base_url, "tencent": f"http://127.0.0.1:{fake.port}"}
            values |= {"store": redis.url, "short_s": SHORT_S, "forbidden": FORBIDDEN, "workers": workers}
            (tmp_path / "relay.toml").write_text(CONFIG.format(**values))
            shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
            await world.start(stack, **dict(environ))
            return world

        yield make


# What goes wrong


@dataclass(frozen=True)
class Case:
    """drive: does it, and gives the answer. code: of the error that was answered; None: another end, or no error.

    echo: canaries of its own that the client may be
    shown again, with the reason in the table.
    """

    drive: Callable
    code: str | None = None
    echo: frozenset = frozenset()


def asked(words="", **options):
    return lambda world: world.post(words, **options)


def sent(data, **options):
    return lambda world: world.wire(data(world.canaries) if callable(data) else data, **options)


def head(can, *lines, path=CHAT, version="1.1"):
    """A head with the canary of a key, of a cookie and of the query, and `lines`."""
    first = f"POST {path}?q={can['query']} HTTP/{version}"
    known = ("Host: relay", f"Authorization: Bearer sk-{can['client_key']}", f"Cookie: s={can['cookie']}")
    return "\r\n".join((first, *known, *lines, "", "")).encode()


async def _over_limits(world, **limits):
    key = await world.new_key(f"limited-{next(iter(limits))}", limits=limits)
    before = world.upstream.received
    first = asyncio.create_task(world.post("upstream:waits", key=key, stream=True))
    try:
        await world.upstream.until(lambda: world.upstream.received > before)
        return await world.post(key=key)
    finally:
        world.go.set()
        await first
        world.go.clear()


async def _over_quota(world):
    return await world.post("x" * 250_000, key=await world.new_key("poor"))


async def _revoked(world):
    key = await world.new_key("revoked")
    await world.admin("PATCH", "/admin/keys/revoked", json={"disabled": True})
    return await world.post(key=key)


async def _not_mine(world):
    return await world.post(key=await world.new_key("bound", models=["known"]))


async def _judged_again(world):
    """The service has been in trouble; ask until it is asked again."""
    async with asyncio.timeout(PATIENCE_S):
        while (await world.post()).code == "moderation_unavailable":
            await asyncio.sleep(0.1)


def _unjudged(**settings):
    async def drive(world):
        await _judged_again(world)
        before = world.fake.settings
        world.fake.change(**settings)
        try:
            return await world.post()
        finally:
            world.fake.settings = before

    return drive


async def _gone_early(world):
    can = world.canaries
    return await world.wire(head(can, "Content-Length: 500") + can["prompt"].encode(), half=True)


async def _gone_later(world):
    world.asked += 1
    async with asyncio.timeout(PATIENCE_S):
        url = f"http://127.0.0.1:{world.port}{CHAT}"
        headers = {"Authorization": f"Bearer sk-{world.canaries['client_key']}"}
        body = world.body("upstream:waits", stream=True)
        async with aiohttp.ClientSession() as client, client.post(url, json=body, headers=headers) as response:
            await response.content.readany()
            response.close()
    return Answer(0, b"", b"")


# The key that a client has sent is shown to it, but for its middle: no eight letters of it in a row.
CASES = {
    # No requests
    "another version": Case(sent(lambda can: head(can, version="9.9")), "bad_request"),
    "no HTTP": Case(sent(lambda can: f"{can['prompt']}\r\n{can['header']}\r\n\r\n".encode()), "bad_request"),
    "TLS": Case(sent(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), "bad_request"),
    "two hosts": Case(sent(lambda can: head(can, f"Host: {can['header']}", "Content-Length: 0")), "bad_request"),
    "a length that is none": Case(sent(lambda can: head(can, f"Content-Length: {can['header']}")), "bad_request"),
    "a coding that is none": Case(sent(lambda can: head(can, f"Transfer-Encoding: {can['header']}")), "bad_request"),
    "a name that is none": Case(sent(lambda can: head(can, f"{can['header']} x: y")), "bad_request"),
    "a value that is none": Case(sent(lambda can: head(can, f"X: {can['header']}\0")), "bad_request"),
    "a chunk that is none": Case(
        sent(lambda can: head(can, "Transfer-Encoding: chunked") + f"{can['prompt']}\r\n".encode()), "bad_request"
    ),
    "a header too long": Case(sent(lambda can: head(can, f"X: {can['header'] * 500}")), "headers_too_large"),
    "too many headers": Case(
        sent(lambda can: head(can, *(f"X-{number}: {can['header']}" for number in range(200)))), "headers_too_large"
    ),
    "headers too long in all": Case(
        sent(lambda can: head(can, *(f"X-{number}: {can['header'] * 200}" for number in range(20)))), "headers_too_large"
    ),
    # Requests that are refused as they are
    "no such path": Case(lambda world: world.post(path=f"/v1/{world.canaries['query']}"), "not_found"),
    "another method": Case(asked(method="PUT"), "method_not_allowed"),
    "compressed": Case(asked(headers={"Content-Encoding": "gzip"}.items()), "unsupported_media_type"),
    "too large": Case(asked("x" * 1_000_000), "request_too_large"),
    "a body that does not come": Case(
        sent(lambda can: head(can, "Content-Length: 500") + can["prompt"].encode()), "request_timeout"
    ),
    "no key": Case(asked(headers={"Authorization": ""}.items()), "invalid_api_key"),
    "another scheme": Case(lambda world: world.post(headers=[("Authorization", f"Basic {world.canaries['wrong']}")]), "invalid_api_key"),
    "a wrong key": Case(lambda world: world.post(key=f"sk-{world.canaries['wrong']}"), "invalid_api_key"),
    "a key that is no text": Case(
        sent(lambda can: b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe" + can["wrong"].encode() + b"\r\n\r\n"),
        "invalid_api_key",
    ),
    "a revoked key": Case(_revoked, "invalid_api_key"),
    "no JSON": Case(lambda world: world.post(raw=b'{"model": ' + world.canaries["prompt"].encode()), "invalid_json"),
    "no UTF-8": Case(lambda world: world.post(raw=world.canaries["prompt"].encode() + b"\xff"), "invalid_json"),
    "a list": Case(lambda world: world.post(raw=json.dumps([world.canaries["prompt"]]).encode()), "invalid_json"),
    "a key twice": Case(
        lambda world: world.post(raw=b'{"%(c)b": 1, "%(c)b": 2}' % {b"c": world.canaries["field"].encode()}), "repeated_key"
    ),
    "messages that are none": Case(lambda world: world.post(messages=world.canaries["prompt"]), "invalid_messages"),
    "a model that is none": Case(asked(model=7), "invalid_model"),
    "a model of others": Case(_not_mine, "invalid_model"),
    "stream": Case(lambda world: world.post(stream=world.canaries["value"]), "invalid_stream"),
    **{
        name: Case(lambda world, name=name: world.post(**{name: world.canaries["value"] * 4}), f"invalid_{name}")
        for name in (
            *("n", "temperature", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty"),
            *("top_p", "user", "logit_bias"),
        )
    },
    "a keyword that is none": Case(
        lambda world: world.post(raw=json.dumps({"keyword": [world.canaries["prompt"]]}).encode(), path="/api/v2.Gptliu/search"),
        "invalid_keyword",
    ),
    "a keyword too long": Case(
        lambda world: world.post(raw=json.dumps({"keyword": world.canaries["prompt"] * 30_000}).encode(), path="/api/v2.Gptliu/search"),
        "keyword_too_long",
    ),
    # Limits
    "too fast": Case(lambda world: _over_limits(world, requests_per_minute=1), "rate_limit_exceeded"),
    "too many at once": Case(
        lambda world: _over_limits(world, concurrent_streams=1), "too_many_requests_in_flight",
    ),
    "too poor": Case(_over_quota, "insufficient_user_quota"),
    # Upstreams
    "upstream: whole": Case(asked(), echo=frozenset({"reply"})),
    "upstream: a stream": Case(asked(stream=True), echo=frozenset({"reply"})),
    **{f"upstream: {status}": Case(asked(f"upstream:{status}"), "upstream_auth") for status in (401, 403)},
    **{f"upstream: {status}": Case(asked(f"upstream:{status}"), "upstream_error") for status in (302, 500, 502, 503)},
    "upstream: busy": Case(asked("upstream:429"), "rate_limit_exceeded"),
    # What an upstream says of a request its client is told, but for keys and addresses.
    "upstream: blames": Case(asked("upstream:blames"), "context_length", echo=frozenset({"blame"})),
    "upstream: quotes the key": Case(asked("upstream:quotes"), OTHER, echo=frozenset({"blame"})),
    "upstream: names it": Case(asked("upstream:names"), OTHER, echo=frozenset({"blame"})),
    "upstream: HTML": Case(asked("upstream:html"), "upstream_malformed"),
    "upstream: nothing": Case(asked("upstream:nothing", stream=True), "upstream_incomplete"),
    "upstream: a reset": Case(asked("upstream:reset"), "upstream_unavailable"),
    "upstream: none": Case(asked(model="closed"), echo=frozenset({"reply"})),
    "upstream: no HTTP": Case(asked("upstream:not_http"), "upstream_unavailable"),
    "upstream: silence": Case(asked("upstream:silence"), "upstream_timeout"),
    "upstream: half": Case(asked("upstream:half", stream=True), "upstream_incomplete", echo=frozenset({"reply"})),
    "upstream: idle": Case(asked("upstream:idle", stream=True), "upstream_timeout", echo=frozenset({"reply"})),
    "upstream: garbage": Case(asked("upstream:garbage", stream=True), "upstream_malformed", echo=frozenset({"reply"})),
    "upstream: reports": Case(asked("upstream:reports", stream=True), "upstream_error", echo=frozenset({"reply"})),
    # Plugins that quote
    **{f"plugin: {hook}": Case(asked(f"break:{hook}"), "internal_error") for hook in ("on_request", "group", "on_stream")},
    "plugin: feed": Case(asked("break:feed", stream=True), "internal_error"),
    "plugin: a later feed": Case(asked("upstream:breaks_feed", stream=True), "internal_error"),
    "plugin: end": Case(asked("break:end", stream=True), "internal_error", echo=frozenset({"reply"})),
    **{
        f"plugin: {where}": Case(asked(f"break:{where}"), echo=frozenset({"reply"}))
        for where in ("on_end", "log", "callback", "task", "future", "slow")
    },
    "plugin: spawn": Case(asked("break:spawn upstream:silence"), "internal_error"),
    # Moderation
    "a prompt that is not allowed": Case(asked(FORBIDDEN), "content_filter"),
    "one that the service blocks": Case(asked(FORBIDDEN_BY_TENCENT), "content_filter"),
    "a reply that is not allowed": Case(asked("upstream:says"), echo=frozenset({"reply"})),
    "one that the service blocks, streamed": Case(asked("upstream:says_tencent", stream=True)),
    "a reply that cannot be moderated": Case(asked("upstream:stalls", stream=True), "moderation_stalled"),
    "a moderator that quotes the prompt": Case(asked("break:moderator"), "moderation_unavailable"),
    "one that gives no verdict": Case(asked("break:verdict"), "moderation_unavailable"),
    "one that quotes the reply": Case(asked("upstream:breaks_moderator", stream=True), "moderation_unavailable"),
    "the service: too many calls": Case(_unjudged(error_share=1, errors={"RequestLimitExceeded": 1}), "moderation_unavailable"),
    "the service: no answer": Case(_unjudged(outage="black_hole"), "moderation_unavailable"),
    **{
        f"the service: {kind}": Case(_unjudged(error_share=1, errors={kind: 1}), "moderation_unavailable")
        for kind in ("reset", "garbage", "InvalidParameterValue")
    },
    "the service: another account": Case(_unjudged(error_share=1, errors={"AuthFailure.SecretIdNotFound": 1}), "moderation_unavailable"),
    "the service: not any more": Case(asked(), "moderation_unavailable"),
    # Clients that leave
    "gone before the body": Case(_gone_early),
    "gone in the stream": Case(_gone_later),
    # Nothing was asked
    "the models": Case(asked(method="GET", path="/v1/models", raw=b"")),
    "the quota": Case(asked(method="GET", path="/v1/quota", raw=b"")),
    "a preflight": Case(asked(method="OPTIONS", raw=b"")),
}  # fmt: skip

# Without a store, and at the end: after them the process serves nothing else.
LAST = {"auth_unavailable", "quota_unavailable", "draining"}


async def drive(world, name, case):
    """One case: note its answer, and wait for as many lines as there were requests."""
    answer = await case.drive(world)
    world.answers.append((name, answer.said, case.echo))
    if answer.code != case.code and not (case.code == OTHER and answer.code not in (None, *REFUSALS)):
        world.unlike.append((name, case.code, answer.code))
    await world.until(lambda: len(world.requests) >= world.asked - world.open)
    return answer


async def test_no_canary_sings(world):
    """Every refusal there is, and all else that goes wrong with a request: nobody is told what is not his."""
    world = await world()
    listening = asyncio.create_task(_events(world))
    provoked = set()
    for name, case in CASES.items():
        answer = await drive(world, name, case)
        provoked.add(answer.code if answer.code in REFUSALS else OTHER)
    await _look(world, "after all")
    # The store goes away while a stream is open.
    unseen = await world.new_key("unseen")
    await _judged_again(world)
    before = world.upstream.received
    live = asyncio.create_task(world.post("upstream:mutters", stream=True))
    world.open = 1
    await world.upstream.until(lambda: world.upstream.received > before)
    await asyncio.to_thread(world.redis.main.kill)
    for key, code in (("", "quota_unavailable"), (unseen, "auth_unavailable")):
        await drive(world, code, Case(asked(key=key), code))
    await _look(world, "without a store")
    # SIGTERM, for the last time of asking; and again, for the end of the stream.
    world.process.send_signal(signal.SIGTERM)
    await world.until(lambda: world.events("draining"))
    await drive(world, "draining", Case(asked(), "draining"))
    world.process.send_signal(signal.SIGTERM)
    answer = await live
    world.answers.append(("drained", answer.said, frozenset()))
    assert "draining" == answer.code
    async with asyncio.timeout(PATIENCE_S):
        assert 0 == await world.process.wait()
        await world._reading
        events = await listening
    provoked |= LAST
    assert [] == world.unlike
    assert set(REFUSALS) == provoked
    # One line a request, and nothing beside lines.
    assert world.asked == len(world.requests)
    assert world.asked == len({line["request_id"] for line in world.requests})
    assert [] == world.odd
    # The whole of it, and what is on disk.
    kept = [path for path in (world.folder / "relay-data").rglob("*") if path.is_file()]
    assert kept
    _search(world, events, *(path.read_bytes() for path in kept))
    reasons = re.findall(rb'relay_moderation_checks_total{moderator="tencent",outcome="(\w+)"} [1-9]', world.metrics)
    assert set(UNJUDGED) <= {reason.decode() for reason in reasons}
    kinds = re.findall(rb'relay_upstream_errors_total{kind="(\w+)",upstream="\w+"} [1-9]', world.metrics)
    assert set(UPSTREAM_ERRORS) - {OTHER} <= {kind.decode() for kind in kinds}


async def _events(world):
    """What the operator's stream of events says, to its end."""
    url = f"http://127.0.0.1:{world.admin_port}/admin/events"
    headers = {"Authorization": f"Bearer {world.canaries['admin_token']}"}
    said = b""
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers, params={"last": "100"}) as response:
        assert 200 == response.status
        with suppress(aiohttp.ClientError):
            async for part in response.content.iter_any():
                said += part
    return said


async def _look(world, when):
    """All that the admin listener answers."""
    can = world.canaries
    unseen = frozenset()
    for path in (
        "/metrics",
        "/healthz",
        "/readyz",
        "/admin/keys",
        "/admin/audit",
        "/admin/quota/k",
        "/admin/quota/k/entries",
        "/admin/openapi.json",
    ):
        answer = await world.admin("GET", path)
        world.answers.append((f"{when}: {path}", answer.said, unseen))
        if path == "/metrics":
            world.metrics = answer.said
    # What an operator does wrong: nothing of it is said again but the names in it, which are no secrets.
    wrong = {"name": "x", "labels": {can["label"]: 7}, can["field"]: can["value"]}
    for method, path, options, echo in (
        ("GET", "/admin/keys", {"token": can["wrong"]}, set()),
        ("POST", "/admin/keys", {"json": wrong}, {"field", "label"}),
        ("POST", "/admin/keys", {"data": can["value"].encode()}, set()),
        ("POST", "/admin/keys", {"json": {"name": can["value"] * 4}}, set()),
        ("PATCH", "/admin/keys/k", {"json": {"disabled": can["value"]}}, set()),
        ("PATCH", f"/admin/keys/{can['value']}", {"json": {"disabled": True}}, {"value"}),
        ("DELETE", f"/admin/keys/{can['value']}", {}, {"value"}),
        ("POST", f"/admin/keys/{can['value']}/rotate", {"json": {"overlap_s": can["label"]}}, set()),
        ("GET", f"/admin/audit?before={can['value']}", {}, set()),
        ("GET", f"/admin/audit?{can['value']}=x", {}, {"value"}),
        ("GET", f"/admin/quota/{can['value']}", {}, {"value"}),
        ("GET", f"/admin/quota/k?unit={can['value']}", {}, {"value"}),
        ("POST", "/admin/quota/k/top-up", {"json": {"amount": can["value"]}}, set()),
        ("GET", f"/admin/{can['value']}", {}, set()),
        ("PUT", "/admin/keys", {}, set()),
        ("GET", f"/{can['value']}", {}, set()),
        ("GET", f"/admin/events?kind={can['value']}", {}, {"value"}),
        ("GET", f"/admin/events?last={can['value']}", {}, set()),
    ):
        answer = await world.admin(method, path, **options)
        assert answer.status >= 400, (method, path, answer.said)
        world.answers.append((f"{when}: {method} {path}", answer.said, frozenset(echo)))


def _search(world, *more):
    """Nothing is found where it should not be."""
    found = {}
    for name, said, echo in [
        *world.answers,
        ("log and standard error", world.said, set()),
        *(("events or files", said, set()) for said in more),
    ]:
        if sung := world.canaries.in_(said) - echo:
            found[name] = sung
    lines = [line.decode() for line in world.said.splitlines() if world.canaries.in_(line)]
    assert {} == found, lines


# Other ways to fail


SECRETS = (
    "admin_token",
    "redis_password",
    "upstream_key",
    "second_upstream_key",
    "client_key",
    "tencent_id",
    "tencent_key",
)

# What is wrong in a relay.toml that has its secrets in place: a piece of it, and what stands there instead.
BROKEN = {
    "no TOML behind a secret": ('token = "{admin_token}"', 'token = "{admin_token}'),
    "a secret without quotes": ('api_key = "{upstream_key}"', "api_key = {upstream_key}"),
    "a secret as a list": ('api_key = "{upstream_key}"', 'api_key = ["{upstream_key}"]'),
    "a secret as another table": ('api_key = "{upstream_key}"', 'api_key = {{ evn = "{upstream_key}" }}'),
    "a secret twice": ('token = "{admin_token}"', 'token = "{admin_token}"\ntoken = "{admin_token}"'),
    "a misspelt name of a secret": ('api_key = "{upstream_key}"', 'api_kye = "{upstream_key}"'),
    "a field beside a secret": ('token = "{admin_token}"', 'token = "{admin_token}"\nprot = 1'),
    "a type beside a secret": ("port = 0\ntoken", 'port = "x"\ntoken'),
    "a password of no store": ("redis://", "reddis://"),
    "a password of a store that is none": ("@127.0.0.1:9/0", "@127.0.0.1:port/0"),
    "a password in an upstream's address": ('base_url = "{base_url}', 'base_url = "http://u:{upstream_key}@h/v1'),
    "a password and another scheme": ('base_url = "{base_url}', 'base_url = "ftp://u:{upstream_key}@h/v1'),
    "a key in an upstream's query": ("{upstream_path}", "{upstream_path}?key={upstream_key}"),
    "the same key twice": (
        'key = "sk-{client_key}" }}',
        'key = "sk-{client_key}" }}, {{ name = "l", key = "sk-{client_key}" }}',
    ),
    "a key with a space": ('key = "sk-{client_key}"', 'key = "sk-{client_key} "'),
    "a key for a list": ('[{{ name = "k", key = "sk-{client_key}" }}]', '"sk-{client_key}"'),
    "a key without a name": ('{{ name = "k", key = "sk-{client_key}" }}', '{{ key = "sk-{client_key}" }}'),
    "a misspelt name beside a key": ('name = "k", key', 'nmae = "k", key'),
    "credentials that are none": ("AKID{tencent_id}", "AK ID/{tencent_id}"),
    "a secret of the service as a number": ('secret_key = "{tencent_key}"', 'secret_key = 7, token = "{tencent_key}"'),
    "a password in the service's address": ('endpoint = "{tencent}"', 'endpoint = "http://u:{tencent_key}@h"'),
    "a password and another scheme of it": ('endpoint = "{tencent}"', 'endpoint = "ftp://u:{tencent_key}@h"'),
    "a key in the service's query": ('endpoint = "{tencent}"', 'endpoint = "http://h/?key={tencent_key}"'),
    "a misspelt option beside secrets": ('endpoint = "{tencent}"', 'endpiont = "{tencent}"'),
    "a plugin that is none": ('use = "history"', 'use = "histroy"'),
}


def configured(canaries, **changed):
    """The values that stand in relay.toml, of nothing that runs."""
    values = {name: canaries[name] for name in (*SECRETS, "upstream_path", "lexicon_word")}
    values |= {"base_url": "http://127.0.0.1:9", "tencent": "http://127.0.0.1:9", "workers": 1, "short_s": 1}
    values |= {"store": f"redis://:{canaries['redis_password']}@127.0.0.1:9/0", "forbidden": FORBIDDEN}
    return {**values, **changed}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_configuration_is_refused_without_its_secrets(broken, tmp_path):
    """`relay check` names what is wrong, and shows none of the secrets that stand beside it."""
    canaries = Canaries()
    before, after = BROKEN[broken]
    values = configured(canaries)
    text, before, after = CONFIG.format(**values), before.format(**values), after.format(**values)
    assert before in text
    text = text.replace(before, after, 1)
    (tmp_path / "relay.toml").write_text(text)
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    done = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "relay.toml")])
    assert (2, SystemExit) == (done.exit_code, type(done.exception)), done.output
    assert set() == canaries.in_(done.output), done.output
    assert "Traceback" not in done.output


def test_no_object_shows_a_secret(tmp_path):
    """Neither the configuration nor what is built of it; nor does `relay check`, which says what would run."""
    canaries = Canaries()
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    path = tmp_path / "relay.toml"
    path.write_text(CONFIG.format(**configured(canaries)))
    config = parse(path.read_text(), path)
    chain = assemble(config)
    shown = [repr(config), str(config), *(f"{link.plugin!r} {link}" for link in chain.links)]
    assert "api_key=Secret(…)" in shown[0]
    # Where an upstream is, and what words are looked for, are no secrets.
    assert set() == canaries.in_("".join(shown)) - {"lexicon_word", "upstream_path"}
    done = CliRunner().invoke(main, ["check", "--config", str(path)])
    assert 0 == done.exit_code, done.output
    assert set() == canaries.in_(done.output) - {"upstream_path"}


@pytest.mark.parametrize("command", ["serve", "keys list", "audit", "quota show k"])
def test_a_store_that_is_away_is_named_without_its_password(command, tmp_path):
    """Commands say where it is, and not what opens it."""
    canaries = Canaries()
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    (tmp_path / "relay.toml").write_text(
        CONFIG.format(**configured(canaries, store=f"redis://u:{canaries['redis_password']}@127.0.0.1:9/x"))
    )
    done = _relay(tmp_path, *command.split())
    assert 0 != done.returncode
    assert set() == canaries.in_(done.stdout + done.stderr), done
    assert b"Traceback" not in done.stderr


def _relay(folder, *arguments, **environ):
    """A command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, **environ},
    )


def test_a_key_is_shown_once(tmp_path, monkeypatch):
    """`relay keys create` and `rotate` print the secret that they make; nothing prints it again, not even the store."""
    can = Canaries()
    monkeypatch.setattr(servers, "PASSWORD", can["redis_password"])
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    with servers.valkey_tcp() as redis:
        (tmp_path / "relay.toml").write_text(CONFIG.format(**configured(can, store=redis.url)))
        _make_keys(tmp_path, can)
        with redis.main.connect(db=1) as store:
            kept = b"".join(store.dump(name) + name for name in store.keys("*"))
    assert len(kept) > 100
    assert set() == can.in_(kept)


def _make_keys(folder, can):
    def relay(*arguments):
        done = CliRunner().invoke(main, [*arguments, "--config", str(folder / "relay.toml")])
        return done.exit_code, done.output.encode()

    said = b""
    for arguments in (("keys", "create", "shop"), ("keys", "rotate", "shop", "--overlap", "1h")):
        status, output = relay(*arguments)
        assert 0 == status, output
        [secret] = set(re.findall(r"sk-[\w-]{20,}", output.decode()))
        assert 1 == output.decode().count(secret)
        can[f"made by {arguments[1]}"] = secret[8:-4]
        said += output.replace(secret.encode(), b"")
    for arguments in (
        *(("keys", "list"), ("keys", "show", "shop"), ("keys", "show", "shop", "--json"), ("keys", "create", "shop")),
        *(
            ("keys", "disable", "shop"),
            ("keys", "create", "k"),
            ("keys", "rotate", "nobody"),
            ("audit",),
            ("audit", "--json"),
        ),
        *(
            ("quota", "show", "shop"),
            ("quota", "top-up", "shop", "5"),
            ("quota", "entries", "shop"),
            ("keys", "nothing"),
        ),
        *(("quota", "top-up", "shop", can["value"]), ("keys", "create", "x", "--label", can["value"])),
        *(("keys", "delete", "shop", "--yes"),),
    ):
        said += relay(*arguments)[1]
    assert set() == can.in_(said) - {"value"}, said


@pytest.mark.parametrize("workers", [1, 2])
async def test_processes_show_no_secret(world, workers):
    """Not in their arguments, nor in an environment that was not given to the first of them; nor in the names of files."""
    world = await world(workers=workers)
    await world.post()
    pids = [world.process.pid]
    for pid in pids:
        pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(pids) >= (1 if workers == 1 else 1 + workers)
    said = b"".join(Path(f"/proc/{pid}/{what}").read_bytes() for pid in pids for what in ("cmdline", "environ", "comm"))
    assert set() == world.canaries.in_(said)
    assert set() == world.canaries.in_("".join(map(str, world.folder.rglob("*"))))


async def test_a_worker_that_is_killed(world):
    """What it was doing leaves no line, and what is said of its end holds nothing of it; a reload that is refused neither."""
    world = await world(workers=2)
    text = (world.folder / "relay.toml").read_text()
    before = world.upstream.received
    live = asyncio.create_task(world.post("upstream:mutters", stream=True))
    await world.upstream.until(lambda: world.upstream.received > before)
    for line in world.events("worker serves")[:2]:
        os.kill(line["pid"], signal.SIGKILL)
    with pytest.raises(aiohttp.ClientError):
        await live
    await world.until(lambda: len(world.events("worker serves")) >= 4)
    (world.folder / "relay.toml").write_text(text.replace('use = "history"', 'use = "histroy"'))
    world.process.send_signal(signal.SIGHUP)
    await world.until(lambda: world.events("not reloaded"))
    (world.folder / "relay.toml").write_text(
        text.replace(
            'use = "talkative:Talkative"',
            f'use = "talkative:Talkative"\nstarted = "break:lifespan {world.canaries["value"]}"',
        )
    )
    world.process.send_signal(signal.SIGHUP)
    await world.until(lambda: len(world.events("not reloaded")) >= 2)
    await world.post()
    await world.until(lambda: world.requests)
    assert ["completed"] == [line["outcome"] for line in world.requests]
    _search(world)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_the_loop_in_debug_mode(world, tmp_path, loop):
    """asyncio then tells of callbacks that took long, and of whatever was left; nothing of what they were given."""
    if loop == "asyncio":
        (tmp_path / "uvloop.py").write_text("raise ImportError")  # as on a platform that has none
    world = await world(environ={"PYTHONASYNCIODEBUG": "1", "PYTHONDEVMODE": "1"}.items())
    for words in (
        "break:slow",
        "break:callback",
        "break:task",
        "break:future",
        "break:spawn",
        "break:on_end",
        "upstream:half",
    ):
        answer = await world.post(words, stream=True)
        world.answers.append((words, answer.said, frozenset({"reply"})))
    await world.until(lambda: len(world.requests) == world.asked)
    world.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        assert 0 == await world.process.wait()
        await world._reading
    _search(world)


async def test_a_start_that_breaks(tmp_path):
    """A plugin that cannot be opened ends the start; what it says of that is not repeated."""
    canaries = Canaries()
    shutil.copy(Path(__file__).with_name("talkative.py"), tmp_path)
    started = f'use = "talkative:Talkative"\nstarted = "break:lifespan {canaries["client_key"]}"'
    text = CONFIG.replace('use = "talkative:Talkative"', started).replace('url = "{store}"', 'url = "embedded:"')
    (tmp_path / "relay.toml").write_text(text.format(**configured(canaries)))
    done = await asyncio.to_thread(_relay, tmp_path, "serve")
    assert 0 != done.returncode
    assert set() == canaries.in_(done.stdout + done.stderr), done
