"""What docs/plugins.md shows of the test kit."""

import aiohttp
from slow import Slow
from swap import Swap
from visits import Visits

from relay.store.port import StoreError
from relay.testing import answers
from relay.testing.reply import Lent
from relay.testing.run import run
from relay.testing.served import served
from relay.testing.store import ScriptedStore


# The page shows the next one.
async def test_the_contract(relay_contract):
    await relay_contract(Swap(word="cat", by="dog"), answer="A cat, two cats.")


# And this one.
async def test_over_sockets(relay_upstream):
    upstream = await relay_upstream(answers(["A c", "at."]))
    config = f"""
        [[upstreams]]
        name = "fake"
        base_url = "{upstream.base_url}"
        models = ["*"]
        [[plugins]]
        use = "swap:Swap"
        word = "cat"
        by = "dog"
    """
    chat = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], "stream": False}
    async with served(config) as relay, aiohttp.ClientSession() as session:
        async with session.post(relay.url + "/v1/chat/completions", json=chat) as response:
            answer = await response.json()
    assert answer["choices"][0]["message"]["content"] == "A dog."
    assert (await upstream.request()).json["messages"] == chat["messages"]
    assert [line["outcome"] for line in relay.log if line["event"] == "request"] == ["completed"]


async def test_what_is_logged():
    lent = Lent()
    await run(Slow(seconds=0), lent=lent)
    await run(Slow(), lent=lent)
    [line] = lent.lines
    assert (line["event"], line["level"], line["caller"]) == ("slow reply", "warning", "tester")


async def test_visits(relay_store, relay_contract):
    lent = Lent(store=relay_store)
    assert [(await run(Visits(), lent=lent)).reply.headers["x-visits"] for _ in range(2)] == ["1", "2"]
    await relay_contract(Visits(), lent=lent)


# And this one.
async def test_visits_when_the_store_is_away():
    store = ScriptedStore({"count": StoreError("away", acted=False)})
    ran = await run(Visits(), lent=Lent(store=store))
    assert (ran.reply.status, ran.sent) == (503, None)
    assert store.asked[0].script == "count"
