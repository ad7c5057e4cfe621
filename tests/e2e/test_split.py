"""Whose the time to the first text was: it is told in the line of a request, and counted."""

import pytest

from relay.testing import Head, Pause, Script, Send, frames, streamed, whole
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake

SAID = frames.stream(["Hello there. ", "How are you?"])
PAUSE_S = 0.08
JSON = (("Content-Type", "application/json"),)


@pytest.fixture
def reader():
    """How upstream bodies are read is tested elsewhere."""
    return "push"


@pytest.fixture
def moderated(tms, open_chain):
    """A chain whose moderator takes its time."""

    def chain(**options):
        asked = {"use": "tencent", "secret_id": SECRET_ID, "secret_key": SECRET_KEY, "endpoint": tms.endpoint}
        return [*open_chain, {"use": "moderation", "moderators": [asked], **options}]

    return chain


@pytest.fixture
async def tms():
    async with Fake() as fake:
        fake.change(outage="slow", slow_ms=round(PAUSE_S * 1000))
        yield fake


async def split(rig, **body):
    """The line of one request, with the parts in seconds, and the whole."""
    reply = await rig.ask(**body)
    assert reply.status == 200
    [line] = await rig.ended()
    parts = [line[f"{part}_ms"] / 1000 for part in ("upstream", "moderation", "relay")]
    assert sum(parts) == pytest.approx(line["first_text_ms"] / 1000, abs=1e-3)
    counted = await rig.metrics()
    assert counted["relay_overhead_seconds_sum"] == pytest.approx(parts[2], abs=1e-4)
    assert counted['relay_upstream_first_text_seconds_sum{upstream="u0"}'] == pytest.approx(parts[0], abs=1e-4)
    assert counted.get("relay_moderation_first_text_seconds_sum", 0.0) == pytest.approx(parts[1], abs=1e-4)
    return parts


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_takes_its_time(serve, stream):
    """A role frame that comes at once does not hide it."""
    script = Script(Head(), Send(SAID[0]), Pause(PAUSE_S), Send(b"".join(SAID[1:])))
    whole = Script(Head(headers=JSON), Pause(PAUSE_S), Send(frames.body("Hello there.")))
    rig = await serve(script if stream else whole)
    upstream_s, moderation_s, _ = await split(rig, stream=stream)
    assert upstream_s >= PAUSE_S
    assert moderation_s < PAUSE_S


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("request_mode", ["before", "off"])
async def test_a_moderator_that_takes_its_time(serve, moderated, stream, request_mode):
    """Once for the reply, and once more for a request that the upstream waits for."""
    said = streamed(SAID) if stream else whole(frames.body("Hello there."))
    rig = await serve(said, chain=moderated(request=request_mode))
    _, moderation_s, _ = await split(rig, stream=stream)
    assert moderation_s >= (2 if request_mode == "before" else 1) * PAUSE_S


async def test_a_request_that_is_judged_beside_the_upstream(serve, moderated):
    """What the upstream took meanwhile is not counted twice."""
    script = Script(Head(), Send(SAID[0]), Pause(2 * PAUSE_S), Send(b"".join(SAID[1:])))
    rig = await serve(script, chain=moderated(request="parallel", response="off"))
    upstream_s, moderation_s, _ = await split(rig)
    assert upstream_s >= 2 * PAUSE_S
    assert moderation_s < PAUSE_S
