"""Characters that come in pieces: escapes cut between two chunks, and surrogate pairs.

Tool-call arguments are JSON inside a JSON string, so what they say is written in escapes that survive the first
decoding; and a provider may send the two halves of a pair (U+D83D U+DE00 is 😀) in two chunks. What is moderated is
what the client's own parser will read. Each class here is fed one text piece by piece, gives back all that is decided,
and holds the rest: at most eleven characters of an escape, at most one half of a pair.

Neither knows JSON's structure: an escape is decoded wherever it stands, inside a string or not.
"""

import re
from typing import Final

_SIMPLE: Final = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

# RFC 8259, section 7. A high half waits for what comes next: only the two together are a character.
_HEX: Final = "[0-9A-Fa-f]"
_HIGH: Final = rf"\\u[Dd][89ABab]{_HEX}{{2}}"
_LOW: Final = rf"\\u[Dd][C-Fc-f]{_HEX}{{2}}"
_WHOLE: Final = rf'(?P<high>{_HIGH})(?P<low>{_LOW})|\\u(?P<code>{_HEX}{{4}})|\\(?P<simple>["\\/bfnrt])'
_CUT: Final = rf"(?P<cut>(?:\\(?:u{_HEX}{{0,3}})?|{_HIGH}(?:\\(?:u(?:[Dd](?:[C-Fc-f]{_HEX}?)?)?)?)?)\Z)"
_ESCAPE: Final = re.compile(_WHOLE)
_ESCAPE_OR_CUT: Final = re.compile(f"{_CUT}|{_WHOLE}")

_SURROGATE: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]?|[\udc00-\udfff]")


class Unescaper:
    r"""Decodes JSON string escapes in a text that comes in pieces: `\u4f60` is 你, however it is cut.

    What is no escape is passed on as it stands (`\x`, `\u12g4`), as is a half pair, which stays what `json.loads` makes
    of it: a lone surrogate. `feed` over all pieces, then `finish`, equals `json.loads` of the whole in quotes wherever
    that reads it.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    @property
    def pending(self) -> bool:
        """Whether characters are held."""
        return bool(self._held)

    def feed(self, text: str) -> str:
        """All that is decided once `text` has come."""
        if not self._held and "\\" not in text:
            return text
        text, self._held = self._held + text, ""
        return _ESCAPE_OR_CUT.sub(self._decode, text)

    def finish(self) -> str:
        """What is held when nothing more comes: a high half is whole, a cut escape stands as it is."""
        rest, self._held = self._held, ""
        return _ESCAPE.sub(self._decode, rest)

    def _decode(self, escape: re.Match[str]) -> str:
        match escape.lastgroup:
            case "cut":
                self._held = escape["cut"]
                return ""
            case "simple":
                return _SIMPLE[escape["simple"]]
            case "code":
                return chr(int(escape["code"], 16))
            case _:
                return _paired(int(escape["high"][2:], 16), int(escape["low"][2:], 16))


class SurrogatePairer:
    """Joins the halves of surrogate pairs that stand in neighbouring pieces of a text; a lone half becomes U+FFFD.

    `feed` over all pieces, then `finish`, equals decoding the whole as UTF-16 with `errors="replace"`, half for half.
    """

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = ""

    @property
    def pending(self) -> bool:
        """Whether a high half is held."""
        return bool(self._held)

    def feed(self, text: str) -> str:
        """All that is decided once `text` has come."""
        if not self._held and _SURROGATE.search(text) is None:
            return text
        text, self._held = self._held + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        return _SURROGATE.sub(self._pair, text)

    def finish(self) -> str:
        """What is held when nothing more comes: a half without its other is no character."""
        rest, self._held = self._held, ""
        return "\ufffd" if rest else ""

    @staticmethod
    def _pair(found: re.Match[str]) -> str:
        halves = found[0]
        return _paired(ord(halves[0]), ord(halves[1])) if len(halves) == 2 else "\ufffd"


def _paired(high: int, low: int) -> str:
    """The character of a high and a low half (The Unicode Standard, section 3.9, table 3-5)."""
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
