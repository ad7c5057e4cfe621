"""A stream says the same whether its frames are recognised by their shape or read one by one."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.delivery import MAX_LESSONS, StreamDelivery
from relay.pure.openai import Chunk
from relay.pure.plain import plain_text
from relay.pure.shape import Shapes, shape_of
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, exchange

Told = tuple[list[tuple[bytes, object, object, bool, str]], list[str]]

texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=4)
events = st.one_of(
    texts.map(frames.text),
    st.tuples(texts, st.integers(1, 3)).map(lambda said: frames.text(said[0], index=said[1])),
    st.tuples(texts, st.text("abc1_", max_size=3)).map(lambda said: frames.text(said[0], system_fingerprint=said[1])),
    texts.map(lambda text: frames.text(text).replace(b"\n", b"\r\n")),
    texts.map(lambda text: frames.text(text).replace(b"data: ", b"data:")),
    st.just(frames.role()),
    st.just(frames.finish()),
    st.just(frames.comment("still there")),
    st.just(frames.text("a").replace(b'"content":"a"', b'"content":"a","content":"b"')),
    st.just(frames.chunk([], extra={"error": {"message": "no"}})),
    st.just(b"\n"),
)


def told(reads: list[bytes], shapes: Shapes | None) -> Told:
    """What a sink is told of these reads; without shapes if there are none."""

    async def run() -> Told:
        ex, body, kept = exchange(), HandBody(), Kept()
        delivery = StreamDelivery(ex, kept, body, shapes)
        if shapes is None:
            delivery._lessons = 0
        delivery.start()
        body.say(*reads)
        body.eof()
        await kept.ended()
        chunks = [
            (
                chunk.raw,
                chunk.said or plain_text(chunk.data) if chunk.plain else None,
                chunk.json,
                chunk.plain,
                chunk.name,
            )
            for chunk in kept.chunks
        ]
        return chunks, [outcome.kind for outcome in kept.ends]

    return asyncio.run(run())


@given(st.lists(events, max_size=12), st.data())
def test_a_known_shape_changes_nothing(stream: list[bytes], data: st.DataObject) -> None:
    """Event by event, whole, cut anywhere; a shape learnt from this stream or brought by an earlier one."""
    stream = [*stream, frames.done()]
    whole = b"".join(stream)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    for reads in (stream, [whole], [read for read in frames.cut(whole, sorted(set(cuts))) if read]):
        plain = told(reads, None)
        known = Shapes()
        assert plain == told(reads, known)
        assert plain == told(reads, known)


def delivered(reads: list[bytes], shapes: Shapes) -> list[Chunk]:
    async def run() -> list[Chunk]:
        ex, body, kept = exchange(), HandBody(), Kept()
        StreamDelivery(ex, kept, body, shapes).start()
        body.say(*reads, *frames.stream([]))
        body.eof()
        await kept.ended()
        return kept.chunks

    return asyncio.run(run())


def test_what_one_stream_has_shown_the_next_one_knows() -> None:
    """The shape of an upstream's frames is learnt once."""
    shapes = Shapes()
    first = delivered([frames.role(), frames.text("a"), frames.text("b")], shapes)
    assert [None, (0, "a"), (0, "b")] == [chunk.said for chunk in first[:3]]
    second = delivered([frames.role(), frames.text("c", id="chatcmpl-2"), frames.text("d")], shapes)
    assert [None, (0, "c"), (0, "d")] == [chunk.said for chunk in second[:3]]


def test_several_events_of_one_read_are_recognised() -> None:
    """Each by itself."""
    shapes = Shapes()
    shapes.newest = shape_of(frames.text("x"))
    chunks = delivered([frames.text("a") + frames.text("b") + frames.text("c")], shapes)
    assert [(0, "a"), (0, "b"), (0, "c")] == [chunk.said for chunk in chunks[:3]]


def test_a_stream_whose_frames_are_all_different_is_not_studied_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern costs more than a frame."""
    studied: list[bytes] = []
    monkeypatch.setattr("relay.delivery.shape_of", lambda raw: studied.append(raw) or shape_of(raw))
    changing = [frames.text("a").replace(b"{", b"{" + b" " * n, 1) for n in range(20)]
    delivered(changing, Shapes())
    assert MAX_LESSONS == len(studied)


def test_a_sink_that_raises_ends_the_reply() -> None:
    """Also in the short way."""

    class Faulty(Kept):
        def feed(self, chunk: Chunk) -> None:
            if chunk.said is not None:
                raise RuntimeError
            super().feed(chunk)

    async def run() -> None:
        ex, body = exchange(), HandBody()
        kept = Faulty()
        StreamDelivery(ex, kept, body, Shapes()).start()
        body.say(*[frames.text("a")] * 3)
        assert "internal_error" == (await kept.ended()).kind
        assert body.closed

    asyncio.run(run())
