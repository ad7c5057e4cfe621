"""A conversation written as one string, read as messages: " Q:你好! A:你好,有什么可以帮助你的。 Q:今天天气怎么样?".

The format is that of the second public API this project serves; its page shows an example and a script that builds such
a string, and no grammar. Read here, so that both come out as they are meant:

* A marker is `Q` or `A`, spaces or none, and `:` or `：`; it stands at the start, after white space or after
  `<|endoftext|>`. What follows it, up to the next one, is a turn: the user's after `Q`, the assistant's after `A`.
* A turn is trimmed. So is `<|endoftext|>` at its end, which the script writes between turns. Nothing else is removed.
* A turn with nothing in it says nothing and is left out. So the `A:` at the end, which asks for the answer, is no turn.
  The script glues it to the question ("…?A: "), so it also ends a last question without white space before it.
* Text without a marker, or before the first one, is a question. The first turn may be an answer; several questions or
  answers in a row stay several.
"""

from __future__ import annotations

import re
from typing import Final

SEPARATOR: Final = "<|endoftext|>"

# Looked for by its letter, which most text hardly has. Linear: the spaces after a letter are read twice, once to see
# whether a colon follows and once to take them, and never given back.
_MARKER: Final = re.compile(rf"[QA](?= *+[:：])(?:(?<!\S[QA])|(?<={re.escape(SEPARATOR)}[QA])) *+[:：]")
_ROLES: Final = {"Q": "user", "A": "assistant"}


class TooManyTurns(ValueError):
    """There are more markers than the caller wants to read."""


def turns(text: str, most: int) -> list[dict[str, str]]:
    """The turns of `text` as chat messages: `{"role": "user" or "assistant", "content": …}`, in order, none empty.

    most: how many markers there may be; TooManyTurns is raised at the next one. Takes time in proportion to the length.
    """
    found: list[tuple[str, str]] = []
    role, start = "user", 0
    for marker in _MARKER.finditer(text):
        if len(found) == most:
            raise TooManyTurns(f"more than {most} turns")
        found.append((role, text[start : marker.start()]))
        role, start = _ROLES[marker[0][0]], marker.end()
    last = text[start:]
    found.append((role, _without_prompt(last) if found and role == "user" else last))
    return [{"role": role, "content": content} for role, turn in found if (content := _trimmed(turn))]


def _trimmed(turn: str) -> str:
    """Without white space around it and without separators at its end."""
    parts = turn.split(SEPARATOR)
    while len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return SEPARATOR.join(parts).strip()


def _without_prompt(question: str) -> str:
    """A question without the `A:` that is glued to its end."""
    bare = _trimmed(question)
    letter = bare[:-1].rstrip(" ")
    return letter[:-1] if bare.endswith((":", "：")) and letter.endswith("A") else bare
