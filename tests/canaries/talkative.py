"""A plugin and a moderator whose errors quote what they were given, found beside these tests' relay.toml as anybody's would be.

Where one breaks, the last message says: `break:feed`, for one.
"""

import asyncio
import re
import time
from contextlib import asynccontextmanager
from functools import partial

from relay.moderator import PASS, Moderator, Verdict
from relay.plugin import Plugin


class Quoting(ValueError):
    """Shows all that it was given, in its message and its repr, and in a note."""

    def __init__(self, text):
        super().__init__(f"cannot do with {text!r}")
        self.text = text
        self.add_note(text)


def breaks(where, text):
    """Raise if the text says so; what it raises has a cause that quotes too."""
    if re.search(rf"break:{where}\b", text):
        raise Quoting(text) from LookupError(text)


class Talkative(Plugin):
    """Breaks where it is told to. started: what its start says, and breaks with."""

    started: str = ""

    @asynccontextmanager
    async def lifespan(self, services):
        breaks("lifespan", self.started)
        self._asked = services.log.bind(plugin="talkative")
        yield

    async def on_request(self, ex):
        said = str(ex.request.messages)
        if "break:log" in said:
            self._asked.warning("odd", what=Quoting(said), headers=ex.headers, request=ex.request, exchange=ex)
        breaks("on_request", said)
        if "break:group" in said:
            raise ExceptionGroup(said, [Quoting(said), KeyError(said)])
        loop = asyncio.get_running_loop()
        if "break:overdue" in said:
            await loop.create_future()
        if "break:callback" in said:
            loop.call_soon(partial(breaks, "callback", said))
            loop.call_soon(breaks, "callback", said)
            loop.call_later(0, Quoted(said).breaks)
        if "break:task" in said:
            loop.create_task(self._break(said)).add_done_callback(lambda task: None)
        if "break:future" in said:
            loop.create_future().set_exception(Quoting(said))
        if "break:spawn" in said:
            ex.spawn(self._break(said))
        if "break:slow" in said:
            time.sleep(0.2)  # what asyncio's debug mode complains of

    async def _break(self, said):
        await asyncio.sleep(0)
        raise Quoting(said)

    def on_stream(self, ex, sink):
        said = str(ex.request.messages)
        breaks("on_stream", said)
        return Sink(sink, said)

    async def on_end(self, ex):
        breaks("on_end", str(ex.request.messages))


class Quoted:
    """Something with a repr that shows what it holds."""

    def __init__(self, said):
        self.said = said

    def __repr__(self):
        return f"<Quoted {self.said}>"

    def breaks(self):
        raise Quoting(self.said)


class Sink:
    def __init__(self, sink, said):
        self._sink, self._said = sink, said

    def feed(self, chunk):
        breaks("feed", self._said + str(chunk.json))
        self._sink.feed(chunk)

    def end(self, outcome):
        breaks("end", self._said)
        self._sink.end(outcome)


class Talker(Moderator):
    """Breaks on a text that says `break:moderator`, and gives what it was shown for a label if it says `break:label`."""

    async def check(self, text, context):
        breaks("moderator", text)
        if "break:verdict" in text:
            return text
        if "break:label" in text:
            return Verdict("block", text[-40:])
        return PASS
