"""What a shape takes for a frame, the decoder and the short cut take for the same frame."""

import json
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.pure.framing import framed
from relay.pure.openai import Chunk, PlainChunk
from relay.pure.plain import plain_text
from relay.pure.shape import LESSONS, MAX_BYTES, Shape, Shapes, Stencil, shape_of
from relay.pure.sse import Decoder
from relay.pure.surfaces import CHOICE_METADATA, FRAME_METADATA, MESSAGE_METADATA
from relay.testing import frames


def event(frame: dict[str, object], end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode() + end


def openai(text: str, *, number: int = 1, noise: str = "x", index: int = 0) -> dict[str, object]:
    delta = {"content": text}
    return {
        "id": "chatcmpl-7",
        "created": 1685526975 + number,
        "model": "gpt",
        "system_fingerprint": f"fp_{noise}",
        "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}],
        "usage": None,
        "obfuscation": noise,
    }


def mistral(text: str) -> dict[str, object]:
    frame = openai("")
    content = [{"type": "text", "text": text}]
    return {**frame, "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


def shape(frame: dict[str, object], end: bytes = b"\n\n") -> Shape:
    found = shape_of(event(frame, end))
    assert found is not None
    return found


def reads_the_same(fitting: Shape, raw: bytes) -> None:
    """What fits is one event of the stream, and one frame to the short cut."""
    said = fitting.said(raw)
    assert Stencil(fitting).read(framed(raw)) == said
    if said is None:
        return
    decoder = Decoder()
    decoder.feed(b"data: 1\n\n")
    [found] = decoder.feed(raw)
    assert decoder.idle
    chunk = PlainChunk.of(framed(raw), said)
    assert (chunk.raw, chunk.size, chunk.framed) == (raw, len(framed(raw)), framed(raw))
    assert (found.raw, found.data.strip(), found.plain, found.name) == (raw, chunk.data, chunk.plain, chunk.name)
    assert said == plain_text(found.data)
    assert Chunk(raw, found.data).json == chunk.json
    assert not chunk.lenient


Say = Callable[..., dict[str, object]]
texts = st.text(min_size=1, max_size=6)
ends = st.sampled_from([b"\n\n", b"\r\n\r\n"])


@given(texts, texts, st.integers(0, 10**19), st.text("abcXYZ019_-", max_size=9), ends)
def test_a_frame_that_differs_in_its_values_fits(one: str, other: str, number: int, noise: str, end: bytes) -> None:
    """Unless its text has to be escaped; a number of twenty digits is read in full."""
    assume(shape_of(event(openai(one), end)) is not None)
    raw = event(openai(other, number=number, noise=noise), end)
    said = shape(openai(one), end).said(raw)
    plain = not any(char in '"\\' or char < " " for char in other) and number < 10**17
    if plain:
        assert (0, other) == said
    reads_the_same(shape(openai(one), end), raw)


scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**9), st.floats(-9, 9), st.text("ab_-/ é", max_size=3))


@st.composite
def commonest(draw: st.DrawFn) -> str:
    """The commonest frame as JSON text: any metadata around the text, in any order."""

    def an_object(names: frozenset[str], **known: object) -> dict[str, object]:
        members = draw(st.dictionaries(st.sampled_from(sorted(names)), scalars, max_size=3)) | known
        return dict(draw(st.permutations(list(members.items()))))

    delta = an_object(MESSAGE_METADATA, content=draw(st.sampled_from(["a", "你好", "a:1", "{}"])))
    choice = an_object(CHOICE_METADATA - {"finish_reason"}, delta=delta, index=draw(st.integers(0, 2)))
    frame = an_object(FRAME_METADATA, choices=[choice])
    return json.dumps(frame, ensure_ascii=False, separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])))


@given(commonest(), ends, st.data())
def test_what_fits_is_read_the_same_way_in_full(body: str, end: bytes, data: st.DataObject) -> None:
    """Any frame that has a shape, with any bytes put in anywhere."""
    raw = b"data: " + body.encode() + end
    fitting = shape_of(raw)
    assert fitting is not None
    reads_the_same(fitting, raw)
    at = data.draw(st.integers(0, len(raw)))
    gone = data.draw(st.integers(0, 3))
    put = data.draw(
        st.sampled_from(
            [
                b"",
                b'"',
                b"\\",
                b"\n",
                b"\r",
                b"\x00",
                b"\x7f",
                b"\xff",
                b"1",
                b"0",
                b":",
                b",",
                b"{",
                b"}",
                "坏".encode(),
            ]
        )
    )
    reads_the_same(fitting, raw[:at] + put + raw[at + gone :])


@pytest.mark.parametrize("put", [b'"', b"\\", b"\n", b"\r", b"\x00", b"\xff", b"1", b"-", b".", b":", b" ", b"x", b""])
@pytest.mark.parametrize("gone", [0, 1])
def test_no_single_byte_changes_the_meaning_of_what_fits(put: bytes, gone: int) -> None:
    """At every position of a frame."""
    for frame, other in ((openai("你好"), openai("a")), (mistral("你好"), mistral("a"))):
        raw, fitting = event(frame), shape(other)
        assert fitting.said(raw) == (0, "你好")
        for at in range(len(raw) + 1):
            reads_the_same(fitting, raw[:at] + put + raw[at + gone :])


def test_the_kind_of_a_part_is_no_hole() -> None:
    """What is no text is read otherwise."""
    raw = event(mistral("你好"))
    assert shape(mistral("a")).said(raw) == (0, "你好")
    assert shape(mistral("a")).said(raw.replace(b'"type":"text"', b'"type":"blob"')) is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(event(openai("")), id="no text"),
        pytest.param(event(openai('a"b')), id="an escape"),
        pytest.param(event(openai("b", index=1)), id="another choice"),
        pytest.param(event(openai("b", noise="é")), id="metadata that is no ASCII"),
        pytest.param(event(openai("b", noise='"')), id="metadata with an escape"),
        pytest.param(event(openai("b") | {"error": None}), id="one key more"),
        pytest.param(event(openai("b") | {"model": None}), id="a value of another kind"),
        pytest.param(event(openai("b")) * 2, id="two events"),
        pytest.param(event(openai("b"))[:-1], id="no end"),
        pytest.param(event(openai("b"), b"\r\n\r\n"), id="another line end"),
        pytest.param(b": \n" + event(openai("b")), id="a comment before it"),
        pytest.param(event(openai("b")).replace(b'"b"', b'"\xff"'), id="no UTF-8"),
        pytest.param(event(openai("b")).replace(b"16855", b"016855"), id="no JSON number"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_does_not_fit_is_for_the_decoder(other: bytes) -> None:
    """Whatever differs in more than its values."""
    assert shape(openai("a")).said(other) is None


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(event({"choices": []}), id="no choice"),
        pytest.param(frames.chunk([{"delta": {"role": "assistant"}, "index": 0}]), id="no text"),
        pytest.param(b": \n" + event(openai("a")), id="a comment before it"),
        pytest.param(event(openai("a")).replace(b",", b",\ndata: ", 1), id="two lines"),
        pytest.param(event(openai("a", noise="x" * MAX_BYTES)), id="too long"),
        pytest.param(b"data: [DONE]\n\n", id="the end"),
    ],
)
def test_other_events_have_no_shape(raw: bytes) -> None:
    """Only the commonest frame has."""
    assert shape_of(raw) is None


@pytest.mark.parametrize(
    "raw", [event(openai("a")).replace(b"data: ", b"data:"), b"data: " + json.dumps(openai("a")).encode() + b"\n\n"]
)
def test_spaces_are_part_of_a_shape(raw: bytes) -> None:
    """After the field's name, and where JSON has them."""
    fitting = shape_of(raw)
    assert fitting is not None
    assert (0, "a") == fitting.said(raw)
    reads_the_same(fitting, raw)


def test_streams_of_one_server_share_a_pattern() -> None:
    """It is compiled once."""
    assert shape(openai("a", number=1)).match is shape(openai("b", number=2, noise="y")).match


def before(text: str, noise: str = "1") -> dict[str, object]:
    return openai(text) | {"system_fingerprint": f"fp-{noise}"}


def behind(text: str, noise: str = "1") -> dict[str, object]:
    return openai(text) | {"obfuscation": noise}


def nowhere(text: str, noise: str = "") -> dict[str, object]:
    return openai(text)


STREAMS = pytest.mark.parametrize("say", [nowhere, before, behind])


def stencil(*raws: bytes) -> Stencil:
    """Of a stream that has said these events."""
    fitting = shape_of(raws[0])
    assert fitting is not None
    found = Stencil(fitting)
    for raw in raws:
        assert found.read(framed(raw)) is not None
    return found


@STREAMS
@given(st.text(min_size=1, max_size=6), st.text("abcXYZ019", min_size=3, max_size=3))
def test_what_a_stream_repeats_is_known(say: Say, text: str, noise: str) -> None:
    """From two events on, unless they differ in more than text and noise."""
    known = stencil(event(say("a", "abc")), event(say("你好", "XY0")))
    said = known.said(framed(event(say(text, noise))))
    assert said is None or said == (0, text)
    assert (said is not None) == (not any(char in '"\\' or char < " " for char in text))


def test_noise_of_any_length_is_known_behind_the_text() -> None:
    """It hides how long that is; there is always some, of letters and digits."""
    known = stencil(event(behind("a", "abc")), event(behind("你好", "X")))
    assert (0, "b") == known.said(framed(event(behind("b", "x" * 30))))
    for noise in ("", "é", "\\", '"', "a b", "a_b"):
        assert known.said(framed(event(behind("b", noise)))) is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(before("你好") | {"created": 5}, id="a number"),
        pytest.param(before("你好", "2") | {"obfuscation": "y"}, id="two strings"),
        pytest.param(before("你好", "a-1"), id="a string that is not of letters and digits"),
    ],
)
def test_a_stream_that_repeats_less_is_read_by_its_shape(other: dict[str, object]) -> None:
    """Nothing of it is known ahead; after some time nobody looks for it any more."""
    one, another = event(before("a")), event(other)
    known = stencil(*[one, another] * LESSONS)
    assert known.said(framed(one)) is known.said(framed(another)) is None
    assert (0, "a") == known.read(framed(one))
    assert known._last is None


def test_what_a_stream_repeats_may_change() -> None:
    """Servers tell the time."""
    first, second = ({**nowhere("a"), "created": created} for created in (1, 2))
    known = stencil(event(first), event(first))
    assert known.said(framed(event(first)))
    assert not known.said(framed(event(second)))
    assert known.read(framed(event(second)))
    assert known.read(framed(event(second)))
    assert known.said(framed(event(second)))


@STREAMS
@pytest.mark.parametrize(
    "put", [b'"', b"\\", b"\n", b"\r", b"\x00", b"\xff", b"1", b"g", b"-", b":", b" ", "坏".encode(), b""]
)
@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_what_is_known_would_be_read_the_same(say: Say, put: bytes, gone: int, end: bytes) -> None:
    """Whatever byte is changed, in the event or in what HTTP puts around it."""
    one, other, raw = (event(say(text, noise), end) for text, noise in (("a", "b"), ("bc", "3"), ("你好", "x")))
    known = stencil(one, other)
    whole = framed(raw)
    assert (0, "你好") == known.said(whole)
    for at in range(len(whole) + 1):
        reads_the_same_chunk(known, whole[:at] + put + whole[at + gone :])
    for at in range(len(raw) + 1):
        reads_the_same_chunk(known, framed(raw[:at] + put + raw[at + gone :]))


@STREAMS
@given(st.integers(0, 400), st.integers(0, 400), st.binary(max_size=3), st.booleans())
def test_what_is_known_would_be_read_the_same_when_cut(say: Say, at: int, gone: int, put: bytes, outer: bool) -> None:
    """Also where head and tail would overlap."""
    known, raw = stencil(event(say("a", "b")), event(say("bc", "3"))), event(say("你好", "x"))
    whole = framed(raw) if outer else raw
    whole = whole[:at] + put + whole[at + gone :]
    reads_the_same_chunk(known, whole if outer else framed(whole))


def reads_the_same_chunk(known: Stencil, chunk: bytes) -> None:
    said = known.said(chunk)
    read = Stencil(known._shape).read(chunk)
    assert said is None or said == read
    if read is not None:
        size, _, rest = chunk.partition(b"\r\n")
        assert int(size, 16) == len(rest) - 2
        assert rest.endswith(b"\r\n")
        assert known._shape.said(rest[:-2]) == read


@pytest.mark.parametrize("form", ["%X", "0%x", "%x ", "%x;a=b", "+%x", "0x%x"])
@STREAMS
def test_sizes_are_read_as_servers_write_them(form: str, say: Say) -> None:
    """In either case, and in no other way: the parser knows the others."""
    raws = [event(say(text, "1")) for text in ("你好", "a", "好" * 40)]
    chunks = [(form % len(raw)).encode() + b"\r\n" + raw + b"\r\n" for raw in raws]
    assert any(b"A" <= chunk[:1] or b"A" <= chunk[1:2] for chunk in chunks)
    fitting = shape_of(raws[0])
    assert fitting is not None
    known = Stencil(fitting)
    for chunk in chunks * 2:
        assert (known.read(chunk) is not None) == (form == "%X")
    for chunk in chunks:
        assert (known.said(chunk) is not None) == (form == "%X")


@given(st.lists(st.binary(min_size=1, max_size=40)))
def test_texts_are_remembered_as_they_are(texts: list[bytes]) -> None:
    """Of a text that is no UTF-8 nothing is."""
    fitting = shape(openai("a"))
    for text in texts * 2:
        raw = event(openai("a")).replace(b'"a"', b'"' + text + b'"')
        said = fitting.said(raw)
        assert said is None or said == (0, text.decode())


@pytest.mark.parametrize("number", ["-3", "0.5", "1e5", "1E+5", "-0.25"])
def test_only_whole_numbers_leave_a_hole(number: str) -> None:
    """Others are compared: what has too many digits behind an `e` is no number to some readers."""
    raw = event(openai("a")).replace(b'"usage":null', b'"usage":' + number.encode())
    fitting = shape_of(raw)
    assert fitting is not None
    assert (0, "a") == fitting.said(raw)
    for other in ("-4", "0.6", "1e400", "1E+400", "-0.26", "5"):
        assert fitting.said(raw.replace(number.encode(), other.encode())) is None


def test_nothing_is_known_of_a_server_that_has_said_nothing() -> None:
    """Its first stream shows the shape of its frames."""
    assert Shapes().newest is None
