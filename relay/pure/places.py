"""Where a text stood, as it may be written down: a client or a server can say anything in the name of a field."""

from __future__ import annotations

import re
from typing import Final

from relay.pure.surfaces import (
    CHOICE_METADATA,
    FRAME_METADATA,
    MESSAGE_METADATA,
    PART_METADATA,
    PART_SURFACES,
    TOOL_METADATA,
)

UNKNOWN: Final = "?"

_REPLY: Final = frozenset(
    "choices delta message text tool_calls function_call function name arguments custom input audio transcript logprobs "
    "token tokens bytes thinking summary annotations citations".split()
)
_REQUEST: Final = frozenset(
    "messages tools functions response_format prediction prompt suffix instructions system documents extra_body "
    "web_search_options chat_template chat_template_kwargs guided_json guided_regex guided_choice guided_grammar".split()
)
_KNOWN: Final = (
    FRAME_METADATA
    | CHOICE_METADATA
    | MESSAGE_METADATA
    | PART_METADATA
    | PART_SURFACES
    | TOOL_METADATA
    | _REPLY
    | _REQUEST
)
_NUMBER: Final = re.compile(r"[0-9]{1,3}", re.ASCII)  # of a tool call
_ELEMENT: Final = re.compile(r"([a-z_]{1,32})\[[0-9]{1,6}\]", re.ASCII)


def known(place: str) -> str:
    """A place of a request, or a surface of a reply, as far as its names are well known; "?" is what is not, and all below it.

    `messages[3]`, `tool_calls.0`, `?message.audio.?`: a question mark before it says that no table has the field.
    """
    mark = UNKNOWN if place.startswith(UNKNOWN) else ""
    steps: list[str] = []
    for step in place[len(mark) :].split("."):
        if not (_is_known(step) or (steps and _NUMBER.fullmatch(step))):
            steps.append(UNKNOWN)
            break
        steps.append(step)
    return mark if steps == [UNKNOWN] and mark else mark + ".".join(steps)


def _is_known(step: str) -> bool:
    element = _ELEMENT.fullmatch(step)
    return (step if element is None else element[1]) in _KNOWN
