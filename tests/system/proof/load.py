"""Clients that ask at a steady pace, whatever becomes of what they asked before."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager, suppress
from itertools import count

import aiohttp

PATIENCE_S = 30.0
MOST_OPEN = 400


class Load:
    """Who asks one relay. counts: how requests ended, by status; 0: without an answer."""

    def __init__(self, url, session):
        self.counts = Counter()
        self._url = url
        self._session = session
        self._numbers = count()
        self._tasks = set()

    def ask(self, key, *, content="hello", leave=False, data=None, path="/v1/chat/completions", **fields):
        """One request; a coroutine of its status and body, which is None where it broke off.

        leave: go away when the reply has begun. data: this instead of a chat request. fields: of the body, but `mishap`.
        """
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        if mishap := fields.pop("mishap", ""):
            headers["x-mishap"] = mishap
        if data is None:
            messages = fields.pop("messages", None) or [{"role": "user", "content": content}]
            data = json.dumps({"model": "chat", "stream": True, "messages": messages, **fields}).encode()
        return self._ask(path, headers, data, leave)

    async def _ask(self, path, headers, data, leave):
        status, body = 0, None
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.post(self._url + path, data=data, headers=headers) as response:
                status = response.status
                if leave:
                    await response.content.readany()
                    response.close()
                else:
                    body = await response.read()
        self.counts[status] += 1
        return status, body

    async def look(self, path, key):
        """A GET."""
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.get(self._url + path, headers={"Authorization": f"Bearer {key}"}) as response:
                await response.read()
                self.counts[response.status] += 1

    @asynccontextmanager
    async def every(self, seconds, make):
        """While the block runs, start what `make` makes of a number, again and again."""
        asking = asyncio.create_task(self._every(seconds, make))
        try:
            yield
        finally:
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    async def _every(self, seconds, make):
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            if len(self._tasks) < MOST_OPEN:
                task = asyncio.create_task(make(next(self._numbers)))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            due += seconds
            await asyncio.sleep(max(0.0, due - now()))

    async def rest(self):
        """Wait for what is under way."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))


@asynccontextmanager
async def load(url):
    timeout, connector = aiohttp.ClientTimeout(PATIENCE_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        asking = Load(url, session)
        try:
            yield asking
        finally:
            for task in tuple(asking._tasks):
                task.cancel()
            await asyncio.gather(*asking._tasks, return_exceptions=True)
