"""The record of `audit`, of a real relay: who was refused, whose reply was cut, who left; over reloads; and no word of what was said."""

import asyncio
import json

import pytest

from relay.testing import Gate, Head, Script, Send, frames, streamed, whole
from relay_plugins.audit.verify import verify

KEY = "sk-canary-client-2f6b1c90d7e84a53"
PROMPT, SAID = "canary-prompt", "canary-said"


@pytest.fixture
def reader():
    """How upstream bodies are read is tested elsewhere."""
    return "push"


@pytest.fixture
def audited(tmp_path, guarded):
    """`audit` and then the usual chain."""
    return lambda **options: [{"use": "audit", "folder": str(tmp_path / "audit"), **options}, *guarded()]


@pytest.fixture
def read(tmp_path):
    """The records so far, by request id; what stands in the files besides is verified."""

    async def records():
        return await asyncio.to_thread(read_now)

    def read_now():
        found = verify([tmp_path / "audit"])
        assert {""} == {checked.problem for checked in found}
        lines = [json.loads(line) for checked in found for line in checked.path.read_bytes().splitlines()]
        return {line["request_id"]: line for line in lines if line["kind"] == "exchange"}

    return records


async def test_every_request_has_its_record(serve, audited, read, tmp_path):
    """Which says the same as its line in the log; and no file says what was said."""
    rig = await serve(
        streamed(
            [*frames.stream([SAID, " and ", "forbidden fruit", " and more"])[:-1], frames.usage(3, 4), frames.done()]
        ),
        chain=audited(),
    )
    await rig.ask()
    await rig.ask(headers={"Authorization": "Bearer sk-canary-wrong"})
    await rig.ask(messages=[{"role": "user", "content": f"{PROMPT} forbidden fruit"}])
    await rig.ask(messages=3)
    async with rig.session.get(rig.url + "/v1/models") as response:
        await response.read()
    told = await rig.ended(5)
    await rig.stop()
    records = await read()
    assert {line["request_id"] for line in told} == set(records)
    for line in told:
        record = records[line["request_id"]]
        for name in ("operation", "outcome", "code", "status", "caller", "model", "stream"):
            assert line[name] == record[name], name
        assert (line["input_tokens"], line["output_tokens"]) == (record["prompt_tokens"], record["completion_tokens"])
    cut, refused = (
        next(record for record in records.values() if record["outcome"] == kind) for kind in ("filtered", "refused")
    )
    assert ("lexicon", "response") == (cut["stopped_by"], cut["verdicts"][0]["direction"])
    assert (401, None) == (refused["status"], refused["caller"])
    written = b"".join(path.read_bytes() for path in (tmp_path / "audit").iterdir())
    for canary in (PROMPT, SAID, KEY, "sk-canary-wrong", "forbidden"):
        assert canary.encode() not in written


async def test_what_the_upstream_is_asked_for(serve, audited, read):
    """It tells what a stream took, which a client that did not ask does not see."""
    data = [*frames.stream(["Hello"])[:-1], frames.usage(3, 4), frames.done()]
    rig = await serve(streamed(data), chain=audited())
    reply = await rig.ask()
    assert b'"prompt_tokens"' not in reply.data
    await rig.ended()
    await rig.stop()
    [record] = (await read()).values()
    assert (3, 4) == (record["prompt_tokens"], record["completion_tokens"])


@pytest.mark.parametrize("head", [True, False])
async def test_who_leaves(serve, audited, read, head):
    """Has a record too: with the status that it got, if it got one."""
    gate = asyncio.Event()
    begun = [Head(), Send(frames.text("a"))] if head else []
    rig = await serve(Script(*begun, Gate(gate)), chain=audited())
    wire = await rig.dial()
    wire.send(rig.request())
    if head:
        await wire.head()
    else:
        await rig.until(lambda: rig.upstream.received)
    wire.leave("reset")
    await rig.ended()
    gate.set()
    await rig.stop()
    [record] = (await read()).values()
    assert ("client_gone", 200 if head else None) == (record["outcome"], record["status"])


async def test_a_reload_keeps_the_record(serve, audited, read, tmp_path):
    """While both generations serve, each has a file of its own in the folder; what is said to be kept changes with the new one."""
    gate = asyncio.Event()
    scripts = iter(
        [
            Script(Head(), Send(frames.text("a")), Gate(gate), Send(frames.finish()), Send(frames.done())),
            whole(frames.body("c")),
        ]
    )
    rig = await serve(lambda _: next(scripts), folder=tmp_path, chain=audited())
    async with rig.post() as old:
        await old.content.readuntil(b"\n\n")
        rig.document["plugins"] = audited(text="full")
        await rig.reload()
        new = await rig.ask(stream=False)
        assert 200 == new.status
        gate.set()
        await old.content.read()
        ids = [old.headers["x-request-id"], new.headers["x-request-id"]]
    await rig.ended(2)
    await rig.stop()
    records = await read()
    assert 2 == len([*(tmp_path / "audit").iterdir()])
    before, after = (records[each] for each in ids)
    assert "reply" not in before
    assert "c" == after["reply"][0]["text"]
    ended = [line for line in rig.log if line["event"] == "audit file ended"]
    assert {checked.last for checked in await asyncio.to_thread(verify, [tmp_path / "audit"])} == {
        line["last"] for line in ended
    }


async def test_a_folder_that_cannot_be_written_changes_nothing(serve, audited, tmp_path):
    """A reload that would leave no record is refused, with what to do."""
    (tmp_path / "file").write_text("")
    rig = await serve(whole(frames.body("c")), folder=tmp_path, chain=audited())
    rig.loudest = "error"
    rig.document["plugins"] = audited(folder=str(tmp_path / "file" / "below"))
    with pytest.raises(Exception, match="make the folder writable"):
        await rig.reload()
    assert 200 == (await rig.ask(stream=False)).status
