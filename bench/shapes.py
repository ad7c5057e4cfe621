"""The streams of a model server, byte for byte, with gaps for the time at which each write leaves.

A *write* is what a server hands to its socket at once: HTTP chunks, each of one event. It is kept as the pieces between
its gaps, so `stamp.join(pieces)` is all there is to do when it is due. The stamp stands where servers send what nobody
reads: in the fingerprint, or in the padding that hides how long a token is.
"""

import re
import time
from dataclasses import dataclass
from typing import Final

Write = tuple[bytes, ...]

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
END: Final = b"0\r\n\r\n"

# Said again and again: what the first public API's page shows as a stream.
TOKENS: Final = "我 是 一个 AI 语 言 模 型 , 专 门 用 来 回 答 问题 和 提 供 帮 助 的 。".split(" ")
# Of a slow reader's stream: so long that what HTTP puts around an event does not count.
LARGE: Final = 4096

# Nanoseconds of the monotonic clock, which all processes of one machine share. Of fixed width, so sizes are known ahead.
STAMPS: Final = re.compile(rb'"fp_(\d{18})"')
_GAP: Final = b"\0" * 18

_FIRST: Final = (
    b'data: {"id":"chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT","object":"chat.completion.chunk","created":1685526975,'
    b'"model":"gpt-3.5-turbo-1106","system_fingerprint":"fp_%(stamp)b",'
    b'"choices":[{"delta":%(delta)b,"index":0,"finish_reason":%(reason)b}]}\n\n'
)
_OPENAI: Final = (
    b'data: {"id":"chatcmpl-BnhXaRdJcqPWxMbcU6kMYeqPGtYZx","object":"chat.completion.chunk","created":1751226130,'
    b'"model":"gpt-4o-2024-08-06","service_tier":"default","system_fingerprint":"fp_a288987b44",'
    b'"choices":[{"index":0,"delta":%(delta)b,"logprobs":null,"finish_reason":%(reason)b}],'
    b'"usage":null,"obfuscation":"fp_%(stamp)b"}\n\n'
)
_MISTRAL: Final = (
    b'data: {"id":"84b7ea1b1e0c4b6f9c4e2d2a1b1f6a57","object":"chat.completion.chunk","created":1753777675,'
    b'"model":"magistral-medium-2507",'
    b'"choices":[{"index":0,"delta":%(delta)b,"finish_reason":%(reason)b}],"p":"fp_%(stamp)b"}\n\n'
)


@dataclass(frozen=True)
class Shape:
    """How a server writes its events: a frame, and how a text stands in its `delta`."""

    frame: bytes
    text: bytes = b'{"content":"%b"}'
    line_end: bytes = b"\n"

    def event(self, delta: bytes, reason: bytes = b"null") -> bytes:
        frame = self.frame % {b"stamp": _GAP, b"delta": delta, b"reason": reason}
        return frame.replace(b"\n", self.line_end)


SHAPES: Final = {
    "first": Shape(_FIRST),
    "crlf": Shape(_FIRST, line_end=b"\r\n"),
    "openai": Shape(_OPENAI),
    "mistral": Shape(_MISTRAL, text=b'{"content":[{"type":"text","text":"%b"}]}'),
}


@dataclass(frozen=True)
class Setting:
    """What a model server says to one model's clients.

    events: of text, `pace_ms` apart; `together` of them leave in one write. large: each is LARGE bytes of text.
    whole: how many tokens there are in a reply that is not streamed.
    """

    shape: str = "first"
    events: int = 200
    pace_ms: int = 5
    together: int = 1
    large: bool = False
    whole: int = 200

    @property
    def frames(self) -> int:
        """How many events there are in a stream, with its role, the end of its choice and its own."""
        return -(-self.events // self.together) * self.together + 3

    def writes(self) -> list[Write]:
        """The writes of a stream: the role, the texts, the end of the choice, the end of the stream.

        They are few objects, since the text comes round.
        """
        shape = SHAPES[self.shape]
        texts = [token * (LARGE // len(token.encode())) if self.large else token for token in TOKENS]
        said = [_chunk(shape.event(shape.text % text.encode())) for text in texts]
        groups: dict[int, Write] = {}
        for start in range(len(said)):
            group = [said[place % len(said)] for place in range(start, start + self.together)]
            groups[start] = _pieces(b"".join(group))
        done = b"data: [DONE]\n\n".replace(b"\n", shape.line_end)
        return [
            _pieces(HEAD + _chunk(shape.event(b'{"role":"assistant"}'))),
            *(groups[at % len(said)] for at in range(0, self.events, self.together)),
            _pieces(_chunk(shape.event(b"{}", b'"stop"'))),
            _pieces(_chunk(done) + END),
        ]

    def answer(self) -> bytes:
        """A reply that is not streamed, with its head."""
        text = "".join(TOKENS[at % len(TOKENS)] for at in range(self.whole)).encode()
        body = (
            b'{"id":"chatcmpl-7MCqEj6w5C4fUuLcTrsDH2e6ExYkv","object":"chat.completion","created":1685526934,'
            b'"model":"gpt-3.5-turbo-1106","usage":{"prompt_tokens":41,"completion_tokens":%d,"total_tokens":%d},'
            b'"choices":[{"message":{"role":"assistant","content":"%b"},"finish_reason":"stop","index":0}],'
            b'"system_fingerprint":"fp_eeff13170a"}' % (self.whole, self.whole + 41, text)
        )
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def stamp() -> bytes:
    """The time, as it fits into a gap."""
    return b"%018d" % time.monotonic_ns()


def _chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def _pieces(write: bytes) -> Write:
    return tuple(write.split(_GAP))
