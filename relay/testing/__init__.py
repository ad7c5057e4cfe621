"""Fakes that are part of the product: an upstream that follows a script, and the frames it sends.

`relay demo` runs on them, and so can the tests of anyone who writes a plugin::

    async with ScriptedUpstream(streamed(frames.stream(["Hel", "lo"]))) as upstream:
        ...  # point the relay at upstream.base_url
        request = await upstream.request()
        assert request.header("authorization") == "Bearer sk-upstream"
"""

from relay.testing import frames
from relay.testing.script import (
    Abort,
    Close,
    End,
    Gate,
    Hang,
    Head,
    Pause,
    Raw,
    Repeat,
    Script,
    Send,
    Split,
    Step,
    chunked,
    refused,
    streamed,
    whole,
)
from relay.testing.upstream import Request, ScriptedUpstream, Scripts, answers

__all__ = [
    "Abort",
    "Close",
    "End",
    "Gate",
    "Hang",
    "Head",
    "Pause",
    "Raw",
    "Repeat",
    "Request",
    "Script",
    "ScriptedUpstream",
    "Scripts",
    "Send",
    "Split",
    "Step",
    "answers",
    "chunked",
    "frames",
    "refused",
    "streamed",
    "whole",
]
