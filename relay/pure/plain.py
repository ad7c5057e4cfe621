"""The commonest frame, read in one step: one choice with more `content`, and nothing else that says anything.

The content is a string, or an array of one part that is text, as Mistral's models send it.

Nine frames of ten are like that, so they are decoded into exactly that shape, without a dictionary, by a decoder that
refuses everything else; what it refuses is read in full by `relay.pure.surfaces`. It is only a short cut: for a frame
that it reads, the long way would find the same text (`tests/pure/test_plain.py`).

It must not read what a client could read differently. A decoder keeps the last of two equal keys, so the keys on the way
to the text may each stand only once in the bytes, and there may be no escapes in them, which could spell a key otherwise.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from relay.pure.surfaces import CHOICE_METADATA, FRAME_METADATA, MESSAGE_METADATA, PLAIN_SURFACES

_Scalar = str | int | float | bool | None


def _absent(names: frozenset[str], kind: object) -> list[tuple[str, object, None]]:
    return [(name, kind, None) for name in sorted(names)]


_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Part = msgspec.defstruct("_Part", [("text", _Text), ("type", Literal["text"])], forbid_unknown_fields=True, gc=False)
_Delta = msgspec.defstruct(
    "_Delta",
    [
        ("content", _Text | Annotated[list[_Part], msgspec.Meta(min_length=1, max_length=1)]),  # type: ignore[valid-type]
        *_absent(MESSAGE_METADATA, _Scalar),
        *_absent(PLAIN_SURFACES - {"content"}, None),
        *_absent(frozenset({"tool_calls", "function_call", "audio"}), None),
    ],
    forbid_unknown_fields=True,
    gc=False,
)
_Choice = msgspec.defstruct(
    "_Choice",
    [
        ("delta", _Delta),
        ("index", Annotated[int, msgspec.Meta(ge=0, le=127)]),
        ("finish_reason", None, None),
        ("logprobs", None, None),
        *_absent(CHOICE_METADATA - {"index", "finish_reason"}, _Scalar),
    ],
    forbid_unknown_fields=True,
    gc=False,
)
_Frame = msgspec.defstruct(
    "_Frame",
    [
        ("choices", Annotated[list[_Choice], msgspec.Meta(min_length=1, max_length=1)]),  # type: ignore[valid-type]
        *_absent(FRAME_METADATA, _Scalar),
    ],
    forbid_unknown_fields=True,
    gc=False,
)
_decode: Final = msgspec.json.Decoder(_Frame).decode


def plain_text(data: bytes) -> tuple[int, str] | None:
    """The choice's index and its text if `data` is such a frame; None if it is any other."""
    count = data.count
    if (
        b"\\" in data
        or count(b'"content"') != 1
        or count(b'"delta"') != 1
        or count(b'"choices"') != 1
        or count(b'"index"') != 1
    ):
        return None
    try:
        choice = _decode(data).choices[0]  # type: ignore[attr-defined]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    content = choice.delta.content
    if type(content) is list:
        if count(b'"type"') != 1 or count(b'"text"') != 2:  # a key and a value
            return None
        content = content[0].text
    return choice.index, content
