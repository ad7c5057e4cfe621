"""Canaries, and a relay in whose world everything that is secret, and every text of a client's, holds one.

A canary is a row of letters that stands nowhere else. A real `relay serve` with the whole chain is driven, and then
everything that it has said is searched: its log and what it wrote to standard error, metrics, events, the admin listener's
answers, the answers to clients, and what stands in the table of processes.
"""

import asyncio
import base64
import json
import os
import re
import secrets
import string
import sys
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from relay.serve import allow_many_files
from relay.testing import Abort, Close, Gate, Hang, Head, Pause, Raw, Repeat, Script, Send, frames, refused, whole

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
use = "audit"
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
budget_ms = 500
[[chains]]
name = "few"
match = {{ models = ["closed"] }}
[[chains]]
name = "most"
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


def search(world, *more):
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
