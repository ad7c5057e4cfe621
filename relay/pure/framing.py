"""HTTP chunks (RFC 9112, section 7.1), as servers write them: a size in hexadecimal digits, the bytes, line ends."""

from __future__ import annotations

from typing import Final

# How long chunks are as a whole, by their sizes. Longer ones are rare and worth the parsing that they get then.
SIZES: Final = {text: len(text) + 4 + size for size in range(1, 4096) for text in (b"%x" % size, b"%X" % size)}

# How long chunks are of which this is known: how one that is so long as a whole begins, and how many bytes that are.
LINED: Final = 2048

Lines = list[tuple[bytes, int]]


def _lines(form: bytes) -> Lines:
    lines = [(bytes(LINED), LINED)] * LINED  # no chunk is so long: that begins none
    for size in range(1, LINED):
        line = form % size + b"\r\n"
        if (length := len(line) + size + 2) < LINED:
            lines[length] = line, len(line)
    return lines


# With small letters, and with capitals.
LINES: Final = _lines(b"%x"), _lines(b"%X")


def framed(data: bytes) -> bytes:
    """Bytes as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def payload(chunk: bytes) -> bytes:
    """The bytes of one chunk."""
    return chunk[chunk.index(b"\n") + 1 : -2]


def split(data: bytes) -> list[bytes]:
    """The whole chunks that `data` consists of, each with its size; none if it is anything else, or ends in the midst."""
    chunks = []
    start, end = 0, len(data)
    while start < end:
        at = data.find(b"\r\n", start)
        length = SIZES.get(data[start:at])
        if length is None or not data.startswith(b"\r\n", start + length - 2):
            return []
        chunks.append(data[start : start + length])
        start += length
    return chunks
