"""Builders of the bytes that an OpenAI-compatible server sends, for scripts and for tests.

Every frame has the shape of the first public API this project serves: key order ``id, object, created, model,
system_fingerprint, choices:[{delta, index, finish_reason}]``, compact JSON, no ASCII escapes. The values that no test
cares about (`Stamp`) are those of that API's documentation, so the same call always gives the same bytes.

Nothing here comes from `relay.pure`: what a test expects is not built by the code under test.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypedDict, Unpack


class Stamp(TypedDict, total=False):
    """What every chunk of one reply repeats. Each builder takes these as keywords."""

    id: str
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str | None


_CHUNK = Stamp(
    id="chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT",
    created=1685526975,
    model="gpt-3.5-turbo-1106",
    system_fingerprint="fp_eeff13170a",
)
_BODY = Stamp(
    id="chatcmpl-7MCqEj6w5C4fUuLcTrsDH2e6ExYkv",
    created=1685526934,
    model="gpt-3.5-turbo-1106",
    system_fingerprint="fp_eeff13170a",
)


def data(payload: str | bytes) -> bytes:
    """One event with `payload` as its data, as it is: ``data: PAYLOAD`` and a blank line."""
    return b"data: " + (payload.encode() if isinstance(payload, str) else payload) + b"\n\n"


def comment(words: str) -> bytes:
    """A comment line and a blank line, as upstreams send to keep a connection alive."""
    return f": {words}\n\n".encode()


def done() -> bytes:
    """The frame that ends a stream."""
    return data("[DONE]")


def chunk(
    choices: Sequence[Mapping[str, object]], *, extra: Mapping[str, object] | None = None, **stamp: Unpack[Stamp]
) -> bytes:
    """Any chat.completion.chunk: `choices` as they are, `extra` after them."""
    head = {**_CHUNK, **stamp}
    return data(
        _json(
            {
                "id": head["id"],
                "object": "chat.completion.chunk",
                "created": head["created"],
                "model": head["model"],
                "system_fingerprint": head["system_fingerprint"],
                "choices": list(choices),
                **(extra or {}),
            }
        )
    )


def delta(
    fields: Mapping[str, object], *, index: int = 0, finish_reason: str | None = None, **stamp: Unpack[Stamp]
) -> bytes:
    """A chunk of one choice with any delta, for the fields that have no builder of their own."""
    return chunk([{"delta": dict(fields), "index": index, "finish_reason": finish_reason}], **stamp)


def role(name: str = "assistant", *, index: int = 0, **stamp: Unpack[Stamp]) -> bytes:
    """The first chunk of a choice."""
    return delta({"role": name}, index=index, **stamp)


def text(content: str, *, index: int = 0, **stamp: Unpack[Stamp]) -> bytes:
    """A chunk of text."""
    return delta({"content": content}, index=index, **stamp)


def tool(
    arguments: str = "",
    *,
    name: str | None = None,
    call: int = 0,
    call_id: str = "call_1",
    index: int = 0,
    **stamp: Unpack[Stamp],
) -> bytes:
    """A piece of tool call number `call`. With `name` it opens the call (id, type and name), without it goes on."""
    opening = {"id": call_id, "type": "function"} if name is not None else {}
    function = {"name": name, "arguments": arguments} if name is not None else {"arguments": arguments}
    return delta({"tool_calls": [{"index": call, **opening, "function": function}]}, index=index, **stamp)


def finish(reason: str = "stop", *, index: int = 0, **stamp: Unpack[Stamp]) -> bytes:
    """The last chunk of a choice."""
    return delta({}, index=index, finish_reason=reason, **stamp)


def usage(prompt_tokens: int = 41, completion_tokens: int = 6, **stamp: Unpack[Stamp]) -> bytes:
    """The usage chunk as OpenAI sends it after the last finish: no choices."""
    return chunk([], extra={"usage": _usage(prompt_tokens, completion_tokens)}, **stamp)


def error_body(
    message: str = "Internal server error.",
    *,
    kind: str = "talk_api_error",
    param: str | None = None,
    code: str | None = "internal_error",
) -> bytes:
    """The JSON body of a refusal. `kind` stands under "type"."""
    return _json({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error(
    message: str = "Internal server error.",
    *,
    kind: str = "talk_api_error",
    param: str | None = None,
    code: str | None = "internal_error",
) -> bytes:
    """An error inside a stream whose head said 200."""
    return data(error_body(message, kind=kind, param=param, code=code))


def stream(
    texts: Iterable[str],
    *,
    index: int = 0,
    finish_reason: str = "stop",
    tokens: tuple[int, int] | None = None,
    **stamp: Unpack[Stamp],
) -> list[bytes]:
    """The frames of a whole reply of one choice: role, one per text, finish, usage if `tokens` are given, [DONE].

    `tokens` are (prompt_tokens, completion_tokens).
    """
    return [
        role(index=index, **stamp),
        *(text(content, index=index, **stamp) for content in texts),
        finish(finish_reason, index=index, **stamp),
        *([usage(*tokens, **stamp)] if tokens else []),
        done(),
    ]


def body(
    *contents: str, finish_reason: str = "stop", tokens: tuple[int, int] = (41, 6), **stamp: Unpack[Stamp]
) -> bytes:
    """A chat.completion that is not streamed, one choice for each of `contents`.

    `tokens` are (prompt_tokens, completion_tokens).
    """
    head = {**_BODY, **stamp}
    return _json(
        {
            "id": head["id"],
            "object": "chat.completion",
            "created": head["created"],
            "model": head["model"],
            "usage": _usage(*tokens),
            "choices": [
                {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason, "index": index}
                for index, content in enumerate(contents)
            ],
            "system_fingerprint": head["system_fingerprint"],
        }
    )


def models(names: Iterable[str]) -> bytes:
    """The body of ``GET /v1/models``."""
    listed = [{"id": name, "object": "model", "created": _BODY["created"], "owned_by": "openai"} for name in names]
    return _json({"object": "list", "data": listed})


def cut(whole: bytes, at: Iterable[int] | None = None) -> Iterator[bytes]:
    """Yield `whole` in pieces cut at the positions `at`, or byte by byte without them.

    Positions may come in any order, twice, or lie outside; no piece is empty and the pieces joined are `whole`.
    """
    last = len(whole)
    ends = range(1, last) if at is None else sorted({position for position in at if 0 < position < last})
    start = 0
    for end in (*ends, last):
        if end > start:
            yield whole[start:end]
        start = end


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _json(value: object) -> bytes:
    # UTF-8 cannot hold half a surrogate pair; upstreams send it as an escape, which is what backslashreplace makes of it.
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
