"""A whole relay over sockets, in the process of the test.

async with ScriptedUpstream(answers(["Hello"])) as upstream, served(CONFIG.format(upstream.base_url)) as relay:
    ...  # ask relay.url + "/v1/chat/completions"; afterwards look at relay.log
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from relay.config import parse
from relay.log import configure
from relay.serve import running

# What a test would have to write each time; a text that has a table of its own for one of them says what stands there.
_FREE_PORTS = "[{table}]\nport = 0\n"
_NO_STORE = '[store]\nurl = "memory:"\n'


class Served:
    """url, admin_url: of the two listeners, without a path."""

    def __init__(self, url: str, admin_url: str, stream: io.BytesIO) -> None:
        self.url = url
        self.admin_url = admin_url
        self._stream = stream

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its lines so far. That of a request comes after the reply, when all is settled: at the end of the block at the latest."""
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@asynccontextmanager
async def served(config: str, folder: Path | None = None) -> AsyncIterator[Served]:
    """Serve what the text of a relay.toml describes while the block runs, on free ports and without a store.

    folder: where its paths start. A table `[server]`, `[admin]` or `[store]` in the text is taken as it is. Raises
    ConfigError.
    """
    ours = "".join(_FREE_PORTS.format(table=table) for table in ("server", "admin") if not _has(config, table))
    ours += "" if _has(config, "store") else _NO_STORE
    stream = io.BytesIO()
    described = parse(f"{ours}{config}", (folder or Path.cwd()) / "relay.toml")
    async with running(described, configure(stream)) as relay:
        yield Served(f"http://127.0.0.1:{relay.public_port}", f"http://127.0.0.1:{relay.admin_port}", stream)


def _has(config: str, table: str) -> bool:
    """Whether a text has such a table, and not a comment that speaks of it."""
    return re.search(rf"^\s*\[{table}\]", config, re.MULTILINE) is not None
