"""Headers that a plugin gives and no head can hold: a clear 500, named in the log, and counted as what it is."""

import sys
from types import ModuleType

import pytest

from relay import Exchange, Plugin, Reply
from relay.pure.openai import Chunk
from relay.testing import frames, streamed

VALUES = {"line end": "a\r\nx-evil: 1", "number": 7, "bytes": b"a"}


class Odd(Plugin):
    """Sets a header that cannot be sent."""

    value: str
    where: str

    async def on_request(self, ex: Exchange) -> Reply | None:
        if self.where == "answer":
            frame = frames.stream(["own"])[0]
            chunks = (Chunk(frame, frame[6:-2]),) if ex.request.stream else (Chunk.body(frames.body("own")),)
            return Reply(chunks, headers={"x-odd": VALUES[self.value]})
        ex.reply_headers["x-odd"] = VALUES[self.value]
        if self.where == "refused":
            raise_refusal()
        return None


def raise_refusal():
    from relay import Reject

    raise Reject("No.", code="no")


@pytest.fixture(autouse=True)
def odd(monkeypatch):
    module = ModuleType("odd")
    module.Odd = Odd
    monkeypatch.setitem(sys.modules, "odd", module)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("where", ["request", "answer", "refused"])
async def test_it_is_named(serve, where, value, stream):
    """The client gets a 500 that says no more; nothing of the header leaves."""
    rig = await serve(streamed(frames.stream(["Hello"])), chain=[{"use": "odd:Odd", "value": value, "where": where}])
    rig.loudest = "error"
    async with rig.post(stream=stream) as response:
        assert response.status == 500
        assert not {"x-odd", "x-evil"} & set(response.headers)
        assert (await response.json())["error"]["code"] == "internal_error"
    [line] = await rig.ended(1)
    assert (line["outcome"], line["code"], line["status"]) == ("internal_error", "internal_error", 500)
    [said] = [line for line in rig.log if line["event"] == "a reply header cannot be sent"]
    assert (said["header"], said["request_id"]) == ("x-odd", line["request_id"])
