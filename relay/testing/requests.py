"""What clients ask beside one message of text: requests that a plugin has to be able to read, or to refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

_CALL: Final = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"where":"here"}'}}

MESSAGES: Final[Mapping[str, Sequence[Mapping[str, object]]]] = {
    "a content in parts": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            ],
        }
    ],
    "the answer of a tool": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where am I?"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Here."},
    ],
    "a last message without content": [
        {"role": "user", "content": ""},
        {"role": "assistant", "tool_calls": [_CALL]},
    ],
}
"""Messages, by what is odd about them."""
