"""After an outage of its service, moderation is found to be well again by whatever is asked next."""

import asyncio
import gc

import pytest

from relay.exchange import Exchange
from relay.testing import frames, whole
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake

PATIENCE_S = 20.0


def exchanges():
    return [each for each in gc.get_objects() if isinstance(each, Exchange)]


@pytest.mark.parametrize("looked_at", ["requests", "replies"])
async def test_many_texts_end_an_outage(serve, open_chain, looked_at):
    """One call finds out, and it is not given up because others cannot be asked about the rest meanwhile."""
    async with Fake() as fake:
        service = {
            "use": "tencent",
            "secret_id": SECRET_ID,
            "secret_key": SECRET_KEY,
            "endpoint": f"http://127.0.0.1:{fake.port}",
        }
        off = {"response": "off"} if looked_at == "requests" else {"request": "off"}
        plugin = {"use": "moderation", "moderators": [service], "cache_s": 0, "deadline_ms": 500, **off}
        text = "A reply of many windows. " * 200
        rig = await serve(whole(frames.body(text)), chain=[*open_chain, plugin])
        rig.loudest = "warning"
        messages = [{"role": "user", "content": f"text {number}"} for number in range(6)]

        async def ask():
            return (await rig.ask(stream=False, messages=messages)).status

        assert 200 == await ask()
        fake.change(outage="refuse")
        while "breaker_open" not in str(await rig.metrics()):
            assert 503 == await ask()
        fake.change(outage="none")
        async with asyncio.timeout(PATIENCE_S):
            while await ask() != 200:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("request_mode", ["before", "parallel"])
@pytest.mark.parametrize("texts", [1, 3])
async def test_what_an_outage_refuses_is_not_kept(serve, open_chain, request_mode, texts):
    """Its memory is free at once, and does not wait for the collector."""
    async with Fake() as fake:
        service = {"use": "tencent", "secret_id": SECRET_ID, "secret_key": SECRET_KEY, "endpoint": fake.endpoint}
        plugin = {"use": "moderation", "moderators": [service], "cache_s": 0, "request": request_mode}
        rig = await serve(whole(frames.body("Hello")), chain=[*open_chain, plugin])
        rig.loudest = "warning"
        fake.change(outage="refuse")
        messages = [{"role": "user", "content": f"text {number}"} for number in range(texts)]
        gc.collect()
        gc.disable()
        before = {id(each) for each in exchanges()}  # of tests that failed: pytest keeps their frames
        try:
            assert 503 == (await rig.ask(stream=False, messages=messages)).status
            assert ["unavailable"] == [line["outcome"] for line in await rig.ended()]
            await rig.until(lambda: before.issuperset(map(id, exchanges())))
        finally:
            gc.enable()
