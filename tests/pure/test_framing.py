"""HTTP chunks are told apart as a parser would, or not at all."""

from hypothesis import given
from hypothesis import strategies as st

from relay.pure.framing import framed, payload, split

payloads = st.lists(
    st.binary(min_size=1, max_size=20) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"1\r\na\r\n", b"a" * 300])
)


def parsed(data: bytes) -> list[bytes]:
    """What a strict reader finds; nothing if these are not chunks from end to end."""
    found = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16) if size and all(digit in b"0123456789abcdefABCDEF" for digit in size) else 0
        if not length or rest[length : length + 2] != b"\r\n":
            return []
        found.append(rest[:length])
        data = rest[length + 2 :]
    return found


@given(payloads)
def test_whole_chunks_are_split(texts: list[bytes]) -> None:
    """Whatever stands in them; joined they are what came."""
    data = b"".join(map(framed, texts))
    chunks = split(data)
    assert b"".join(chunks) == data
    assert [payload(chunk) for chunk in chunks] == texts


@given(payloads, st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3))
def test_anything_else_is_for_the_parser(texts: list[bytes], at: int, gone: int, put: bytes) -> None:
    """What is split is what a strict reader finds."""
    data = b"".join(map(framed, texts))
    data = data[:at] + put + data[at + gone :]
    chunks = split(data)
    assert not chunks or [payload(chunk) for chunk in chunks] == parsed(data)


def test_a_size_is_written_in_the_shortest_way() -> None:
    """In either case, and without anything beside it."""
    body = b"a" * 171
    for size in (b"ab", b"AB"):
        assert split(size + b"\r\n" + body + b"\r\n")
    for size in (b"aB", b"0ab", b"ab;x=1", b" ab", b"ab ", b"+ab", b"0xab", b"", b"-1"):
        assert not split(size + b"\r\n" + body + b"\r\n")


def test_the_last_chunk_is_for_the_parser() -> None:
    """It ends the body, which the parser has to know."""
    assert not split(b"0\r\n\r\n")
    assert not split(framed(b"a") + b"0\r\n\r\n")
