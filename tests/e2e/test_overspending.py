"""Five hundred at once against a balance for fewer, by two processes on one store: exactly so many are let in."""

import asyncio

import aiohttp
import pytest
from lives import PATIENCE_S, charges, ledger_at, lives, secret, socket_of, write
from servers import redis_single, valkey

from relay.serve import allow_many_files
from relay.testing import Gate, Head, Script, ScriptedUpstream, Send, frames, whole

allow_many_files()

ACCOUNT = "caller"
ASKING, ADMITTED = 500, 137
PROMPT = "p" * 20
INSTALMENT = 50  # characters, and so long is each reply


async def overspend(folder, *, store="embedded:", workers=1, processes=1):
    """Ask all at once; the upstream answers when every request has been decided about."""
    go = asyncio.Event()
    text = "字" * INSTALMENT

    def script(request):
        if not request.streams:
            return Script(Gate(go), whole(frames.body(text)))
        return Script(Head(), Send(frames.role()), Gate(go), *map(Send, frames.stream([text[:30], text[30:]])[1:]))

    async with lives() as start, ScriptedUpstream(script) as upstream, asyncio.timeout(PATIENCE_S):
        grant = ADMITTED * (len(PROMPT) + INSTALMENT)
        relays = []
        for number in range(processes):
            own = folder / str(number)
            write(
                own,
                upstream.base_url,
                accounts=[ACCOUNT],
                store=store,
                # Nobody is refused because this machine is slow.
                timeout_ms=20_000,
                lease_s=30,
                workers=workers,
                grant=grant,
                instalment=INSTALMENT,
            )
            relays.append(await start(own))
        async with _client() as client:
            asking = [
                asyncio.create_task(_ask(client, relays[number % processes].url, stream=number % 3 > 0))
                for number in range(ASKING)
            ]
            decided = asyncio.as_completed(asking)
            for _ in range(ASKING - ADMITTED):
                assert (403, "insufficient_user_quota") == await next(decided)
            await upstream.until(lambda: upstream.received == ADMITTED, PATIENCE_S)
            url = socket_of(relays[0]) if store == "embedded:" else store
            async with ledger_at(url, grant) as ledger:
                standing = await ledger.look(ACCOUNT)
                assert (grant, grant) == (standing.balance, standing.reserved)
                go.set()
                answers = await asyncio.gather(*asking)
                assert ADMITTED == answers.count((200, text))
                while (standing := await ledger.look(ACCOUNT)).reserved:
                    await asyncio.sleep(0.02)
                assert (0, grant) == (standing.balance, standing.used)
                found = await charges(ledger, ACCOUNT)
                assert [(len(PROMPT) + INSTALMENT, ["charge"])] * ADMITTED == list(found.values())
            assert (403, "insufficient_user_quota") == await _ask(client, relays[-1].url, stream=True)
        assert ADMITTED == upstream.received
        shares = [len({line["worker"] for line in relay.lines("request")}) for relay in relays if workers > 1]
        for relay in relays:
            await relay.ends()
            assert relay.lines("request")
        assert [2] * len(shares) == shares


def _client():
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {secret(ACCOUNT)}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(PATIENCE_S),
    )


async def _ask(client, url, *, stream):
    """Status, and what was said or the code of the error."""
    body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": PROMPT}]}
    async with client.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            return response.status, (await response.json())["error"]["code"]
        if not stream:
            return 200, (await response.json())["choices"][0]["message"]["content"]
        text = await response.text()
    assert text.endswith("data: [DONE]\n\n")
    return 200, "字" * text.count("字")


async def test_two_workers_on_the_embedded_store(tmp_path):
    """Both of them have their part."""
    await overspend(tmp_path, workers=2)


async def test_two_relays_on_one_store(tmp_path):
    """Valkey from its wheel."""
    with valkey() as running:
        await overspend(tmp_path, store=running.url, processes=2)


@pytest.mark.system
async def test_two_relays_on_redis(tmp_path):
    """Debian's."""
    with redis_single() as running:
        await overspend(tmp_path, store=running.url, processes=2)
