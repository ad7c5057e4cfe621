"""A relay whose secrets are canaries, for the tests in this folder."""

import asyncio
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import servers

from canaries import CONFIG, FORBIDDEN, FORBIDDEN_BY_TENCENT, SHORT_S, Canaries, World
from relay.testing import ScriptedUpstream
from relay_plugins.tencent.fake import Fake


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
