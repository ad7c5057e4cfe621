"""Keys of a store, from the operator's request to a client's: a real relay on the embedded store."""

import asyncio
import json
from contextlib import asynccontextmanager

import aiohttp
import pytest

from relay.config import parse
from relay.log import configure
from relay.serve import running
from relay.testing import ScriptedUpstream, frames, streamed, whole

PATIENCE_S = 10.0
ADMIN = {"Authorization": "Bearer t0ken"}
CONFIG = """\
[server]
port = 0
[admin]
port = 0
token = "t0ken"
[store]
url = "embedded:"
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["gpt-4", "gpt-3"]
[[plugins]]
use = "auth"
"""


class Rig:
    """A relay without configured keys, seen by its operator and by a client."""

    def __init__(self, relay, session):
        self._public = f"http://127.0.0.1:{relay.public_port}"
        self._admin = f"http://127.0.0.1:{relay.admin_port}"
        self._session = session

    async def operate(self, method, path, body=None):
        async with self._session.request(method, self._admin + path, json=body, headers=ADMIN) as response:
            text = await response.text()
            assert response.status < 300, text
            return json.loads(text) if text else None

    async def ask(self, secret, model="gpt-4"):
        """Status and headers of a chat's answer."""
        asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        headers = {"Authorization": f"Bearer {secret}"}
        async with self._session.post(self._public + "/v1/chat/completions", json=asked, headers=headers) as response:
            await response.read()
            return response.status

    async def models(self, secret):
        headers = {"Authorization": f"Bearer {secret}"}
        async with self._session.get(self._public + "/v1/models", headers=headers) as response:
            assert 200 == response.status
            return [model["id"] for model in (await response.json())["data"]]

    async def until(self, status, secret):
        async with asyncio.timeout(PATIENCE_S):
            while await self.ask(secret) != status:
                await asyncio.sleep(0.02)


def script(request):
    return streamed(frames.stream(["Hello"])) if request.streams else whole(frames.body("Hello"))


@asynccontextmanager
async def serving(folder, log):
    async with ScriptedUpstream(script) as upstream, aiohttp.ClientSession() as session:
        config = parse(CONFIG.format(base_url=upstream.base_url), folder / "relay.toml")
        async with running(config, log) as relay:
            yield Rig(relay, session)


@pytest.fixture
def log(tmp_path):
    with (tmp_path / "log").open("wb", buffering=0) as stream:
        yield configure(stream, "debug")


async def test_the_life_of_a_key(tmp_path, log):
    """Made, used, bound to a model, rotated, disabled, deleted: each takes effect while the relay runs, and outlives it."""
    async with serving(tmp_path, log) as rig:
        assert 401 == await rig.ask("sk-none")
        first = (await rig.operate("POST", "/admin/keys", {"name": "ann"}))["secret"]
        assert 200 == await rig.ask(first)
        assert ["gpt-4", "gpt-3"] == await rig.models(first)
        await rig.operate("PATCH", "/admin/keys/ann", {"models": ["gpt-3"]})
        await rig.until(404, first)
        assert 200 == await rig.ask(first, "gpt-3")
        assert ["gpt-3"] == await rig.models(first)
        await rig.operate("PATCH", "/admin/keys/ann", {"models": None})
        second = (await rig.operate("POST", "/admin/keys/ann/rotate", {"overlap_s": 3600}))["secret"]
        await rig.until(200, first)
        assert 200 == await rig.ask(second)
    async with serving(tmp_path, log) as rig:
        assert [200, 200] == [await rig.ask(first), await rig.ask(second)]
        await rig.operate("PATCH", "/admin/keys/ann", {"disabled": True})
        await rig.until(401, first)
        await rig.until(401, second)
        await rig.operate("PATCH", "/admin/keys/ann", {"disabled": False})
        await rig.until(200, second)
        await rig.operate("DELETE", "/admin/keys/ann")
        await rig.until(401, second)
        audit = await rig.operate("GET", "/admin/audit")
    assert 7 == len(audit["entries"])
    written = (tmp_path / "log").read_text()
    assert first[8:-4] not in written
    assert second[8:-4] not in written
    callers = [line["caller"] for line in map(json.loads, written.splitlines()) if line["event"] == "request"]
    assert {"ann", None} == set(callers)
