"""Clients that leave a real relay at random moments, with everything in its chain that holds something for a request: at
the end nothing is held any more, and what was charged is what was sent."""

import asyncio
import random
import re
import socket
import struct
from contextlib import suppress

import aiohttp
import pytest
import redis
from lives import PATIENCE_S, charges, eventually, ledger_at, lives, secret, socket_of, write

from relay.serve import allow_many_files
from relay.store.port import key_name
from relay.testing import Gate, Head, Pause, Script, ScriptedUpstream, Send, frames, refused, whole

allow_many_files()

ACCOUNT = "caller"
AT_ONCE = 40
LIMITS = f"""\
[[plugins]]
use = "rate_limit"
requests_per_minute = 1_000_000
characters_per_minute = 100_000_000
concurrent_streams = {AT_ONCE}
"""
LAST = "last:" + 1000 * "p"  # none of the others costs as much
ID = re.compile(rb"x-request-id: (\S+)\r\n", re.IGNORECASE)


class Leaver:
    """One request whose client leaves. got: characters that it has read."""

    def __init__(self, chance):
        self.prompt = "p" * chance.randint(0, 100) + chance.choice(["", "", "", "", "", " forbidden fruit"])
        self.reply = "字" * chance.randint(0, 100) + chance.choice(["", "", "", "", "", " forbidden fruit 字"])
        self.stream = chance.random() < 0.7
        self.manner = chance.choice(["close", "reset", "half"])
        self.withheld = chance.choice([0] * 19 + [10])  # bytes of its body
        # When it leaves: after so many bytes of the reply, or so many seconds, whichever is first.
        self.after_bytes, self.after_s = chance.choice([
            (0, 0),
            (0, chance.uniform(0, 0.01)),
            (1, 1),
            (chance.randint(1, 8000), 0.5),
            (10**6, chance.uniform(0, 0.3)),
        ])  # fmt: skip
        self.id = ""
        self.reached = False
        self.got = 0

    async def ask(self, port, number):
        self.prompt = f"{number}:{self.prompt}"
        message = f'{{"role": "user", "content": "{self.prompt}"}}'
        body = f'{{"model": "m", "stream": {str(self.stream).lower()}, "messages": [{message}]}}'.encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {secret(ACCOUNT)}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request[: len(request) - self.withheld])
        data = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.after_s):
                while len(data) < self.after_bytes and (piece := await reader.read(self.after_bytes - len(data))):
                    data += piece
                if not self.after_bytes:
                    await asyncio.sleep(self.after_s)
        if self.manner == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif self.manner == "half":
            writer.write_eof()
            await asyncio.sleep(0)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        if (found := ID.search(data)) is not None:
            self.id = found[1].decode()
        self.got = data.count("字".encode())


async def leave(folder, count, seed):
    chance = random.Random(seed)
    leavers = []
    go = asyncio.Event()

    def script(request):
        number, _, _ = request.json["messages"][-1]["content"].partition(":")
        if number == "last":
            return Script(Head(), Send(frames.role()), Gate(go), Send(b"".join(frames.stream(["字"])[1:])))
        leaver = leavers[int(number)]
        leaver.id, leaver.reached = request.header("x-request-id"), True
        if chance.random() < 0.03:
            return refused(500)
        if not leaver.stream:
            return Script(Pause(chance.uniform(0, 0.05)), whole(frames.body(leaver.reply)))
        steps, start = [Pause(chance.uniform(0, 0.02))], 0
        while start < len(leaver.reply):
            size = chance.randint(1, 20)
            steps += [Send(frames.text(leaver.reply[start : start + size])), Pause(chance.uniform(0, 0.01))]
            start += size
        return Script(Head(), Send(frames.role()), *steps, Send(frames.finish() + frames.done()))

    async with lives() as start, ScriptedUpstream(script) as upstream:
        # Leases outlive the test: who holds something must give it back.
        write(folder, upstream.base_url, accounts=[ACCOUNT], timeout_ms=10_000, lease_s=3600, between=LIMITS)
        life = await start(folder)

        async def keep_leaving():
            while len(leavers) < count:
                leaver = Leaver(chance)
                leavers.append(leaver)
                await leaver.ask(life.port, len(leavers) - 1)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(keep_leaving())
        async with ledger_at(socket_of(life)) as ledger:

            async def free():
                return not (await ledger.look(ACCOUNT)).reserved

            await eventually(free, "the last settlement")
            await eventually(lambda: _quiet(life), "the end of the replies")
            await eventually(lambda: not _leases(life), "the end of the leases")
            await _full_set(life, go)
            await eventually(free, "the settlement of the full set")
            audit(await charges(ledger, ACCOUNT), leavers)
        counted = await _quiet(life)
        assert {name for name in counted if re.match("relay_(journal|degraded)", name)} == set()
        await life.ends()
    assert {"info"} == {line["level"] for line in life.log}
    return leavers, life


async def _quiet(life):
    """What is counted, when no reply is open."""
    counted = await life.metrics()
    return counted if "relay_open_streams" not in counted else None


def _leases(life):
    """How many requests hold a place."""
    with redis.Redis(unix_socket_path=socket_of(life).removeprefix("unix://")) as client:
        return client.zcard(key_name("relay", f"limits:default:key:{ACCOUNT}", ("open",)))


async def _full_set(life, go):
    """As many at once as are allowed are let in, and not one more."""
    client = aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {secret(ACCOUNT)}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(PATIENCE_S),
    )
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": LAST}]}
    url = f"{life.url}/v1/chat/completions"
    async with client:
        opened = await asyncio.gather(*(client.post(url, json=body) for _ in range(AT_ONCE)))
        assert [200] * AT_ONCE == [response.status for response in opened]
        async with client.post(url, json=body) as response:
            assert 429 == response.status
        go.set()
        for response in opened:
            assert b"[DONE]" in await response.read()


def audit(found, leavers):
    """Nobody is charged for what was not asked of the upstream, nor less than he has read, nor more than he was sent."""
    for leaver in leavers:
        taken, kinds = found.pop(leaver.id, (0, ["charge"]))
        told = (leaver.__dict__, taken, kinds)
        assert ["charge"] == kinds, told
        if leaver.reached:
            assert taken <= len(leaver.prompt) + len(leaver.reply), told
        if leaver.got:
            assert taken >= len(leaver.prompt) + leaver.got, told
        assert taken == 0 or taken >= len(leaver.prompt), told
    prompts = sorted((len(leaver.prompt) for leaver in leavers if not leaver.id), reverse=True)
    last = len(LAST) + 1
    unheard = [taken for taken, _ in found.values() if taken != last]
    assert [last] * AT_ONCE == [taken for taken, _ in found.values() if taken == last]
    # Asked, but gone before the upstream had the request.
    assert len(unheard) <= len(prompts)
    for taken, prompt in zip(sorted(unheard, reverse=True), prompts, strict=False):
        assert taken <= prompt


async def test_three_hundred(tmp_path):
    """At random moments, streamed and not."""
    leavers, _ = await leave(tmp_path, 300, "few")
    assert any(leaver.got for leaver in leavers)
    assert any(not leaver.reached for leaver in leavers)


@pytest.mark.long
async def test_ten_thousand(tmp_path):
    """The same for longer."""
    leavers, life = await leave(tmp_path, 10_000, "many")
    outcomes = [line["outcome"] for line in life.lines("request")]
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}, len(leavers))
