"""A chat request: changed exactly, refused where readers could differ, and read in full by whoever moderates it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.fold import fold
from relay.pure.openai import MAX_DEPTH
from relay.pure.request import MAX_BRACKETS, MAX_CHOICES, MAX_MARKS, ChatRequest, InvalidRequest, JsonObject

DIGITS = "123456789012345678901234567890123456789012345678901234567890"
IMAGE = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 40


def body(**fields: object) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], **fields}).encode()


def request(*messages: Any, **fields: object) -> ChatRequest:
    return ChatRequest(body(**({"messages": messages} if messages else {}), **fields))


def refusal(data: bytes) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        ChatRequest(data)
    assert str(caught.value) == caught.value.message
    return caught.value.code, caught.value.param


# Changing

EXACT = (
    b' {"x" : {"deep": [1.50, 1e2, -0, %b]}, "messages": [ {"role":"user", "content":"\\u4f60\\/\\ud83d\\ude00"} ],'
    b'\n"seed":%b,"model":"gpt-4o","y":"\xe4\xbd\xa0","\\u007a":1} '
) % ((DIGITS.encode(),) * 2)


def test_what_nobody_changed_goes_on_byte_for_byte() -> None:
    """White space, escapes, number formats and 60 digits stay; naming the model that it has changes nothing."""
    given = ChatRequest(EXACT)
    assert EXACT == given.encode()
    assert EXACT == given.sent_on(model="gpt-4o")
    assert EXACT is given.encode()


def test_one_field_changes() -> None:
    """The other fields keep their bytes and their place; a new field stands last."""
    given = ChatRequest(EXACT)
    given.set("y", "Ho")
    given.set("z", int(DIGITS))
    given.set("new", {"a": None, "b": "\ud83d"})
    given.remove("seed")
    given.remove("never there")
    expected = (
        f'{{"x":{{"deep": [1.50, 1e2, -0, {DIGITS}]}},'
        '"messages":[ {"role":"user", "content":"\\u4f60\\/\\ud83d\\ude00"} ],"model":"gpt-4o","y":"Ho",'
        f'"z":{DIGITS},"new":{{"a":null,"b":"\\ud83d"}}}}'
    )
    assert expected.encode() == given.encode()
    assert ("Ho", int(DIGITS), None, "gpt-4o", 7) == (
        given.get("y"), given.get("z"), given.get("seed"), given.get("model"), given.get("seed", 7)
    )  # fmt: skip
    assert given.encode() is given.encode()


def test_several_fields_change_at_once() -> None:
    """Those that were there keep their place, new ones stand last, in their order; the mapping is not kept."""
    given, fields = ChatRequest(EXACT), {"b": 0.2, "y": "Ho", "a": int(DIGITS)}
    given.update(fields)
    one_by_one = ChatRequest(EXACT)
    for name, value in fields.items():
        one_by_one.set(name, value)
    assert one_by_one.encode() == given.encode()
    assert given.encode().endswith(f',"y":"Ho","z":1,"b":0.2,"a":{DIGITS}}}'.encode())
    fields["b"] = 1
    assert (0.2, "Ho", int(DIGITS)) == (given.get("b"), given.get("y"), given.get("a"))


def test_what_is_added_stands_behind_what_came() -> None:
    """All of that keeps its bytes, the white space between its fields too; and it can be changed afterwards as before."""
    given = ChatRequest(b" " + EXACT + b"\r\n")
    given.update({"temperature": 0.2, "n": 2})
    added = b" " + EXACT.rstrip()[:-1] + b',"temperature":0.2,"n":2}'
    assert added == given.encode() == given.sent_on(model="gpt-4o")
    assert (0.2, 2, "你") == (given.get("temperature"), given.choices, given.get("y"))
    given.set("half", "\ud83d")
    given.set("n", 3)
    given.set("more", True)
    assert {**json.loads(added), "half": "\ud83d", "n": 3, "more": True} == json.loads(given.encode())
    given.update({})
    empty = JsonObject(b"{ }")
    empty.set("a", 1)
    assert b'{"a":1}' == empty.encode()


TALK = [
    b'{"role":"system",  "content":"\\u4f60\\/"}',
    b'{"role":"user","content":"a","x":%b}' % DIGITS.encode(),
    b'{"content" : "\xe4\xbd\xa0\n]" ,\n"role":"user","y":[1.50, 1e2, -0, {"z":[]}]}'.replace(b"\n]", b"\\n]"),
    b'{"r\\u006fle":"assistant","content":null}',
]


@given(st.sets(st.integers(0, len(TALK) - 1)).map(sorted), st.sampled_from([b",", b" ,\n "]))
def test_messages_that_are_kept_go_on_byte_for_byte(positions: list[int], comma: bytes) -> None:
    """White space, escapes and 60 digits inside a message stay; what stands between messages is a comma."""
    given = ChatRequest(b'{"seed":%b, "messages" : [ %b ],"model":"m"}' % (DIGITS.encode(), comma.join(TALK)))
    messages = given.messages
    given.keep_messages(positions)
    left = b",".join(TALK[position] for position in positions)
    assert b'{"seed":%b,"messages":[%b],"model":"m"}' % (DIGITS.encode(), left) == given.encode()
    assert [messages[position] for position in positions] == given.messages
    assert given.encode() == given.sent_on(model="m")


def test_messages_are_dropped_more_than_once() -> None:
    """Positions are those of the messages that are left, also of messages that were set."""
    given = request(*({"content": str(number)} for number in range(5)))
    given.keep_messages([1, 2, 4])
    given.keep_messages([0, 2])
    assert [{"content": "1"}, {"content": "4"}] == given.messages == json.loads(given.encode())["messages"]
    given.set("messages", [{"content": "\ud83d"}, {"x": int(DIGITS)}, {}])
    given.keep_messages([0, 1])
    assert [{"content": "\ud83d"}, {"x": int(DIGITS)}] == given.messages == json.loads(given.encode())["messages"]


def test_the_upstream_has_a_name_of_its_own_for_the_model() -> None:
    """Only the model changes, in its place, and only for that upstream."""
    given = ChatRequest(EXACT)
    sent = given.sent_on(model="qwen")
    assert EXACT == given.encode()
    before, after = json.loads(EXACT), json.loads(sent)
    assert {**before, "model": "qwen"} == after
    assert [*before] == [*after]
    assert "qwen" == json.loads(ChatRequest(body(model=None)).sent_on(model="qwen"))["model"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.text("abmn:é\\", min_size=1, max_size=3).filter(lambda name: name != "n"), VALUES, max_size=5
)


@given(FIELDS, st.lists(st.tuples(st.text("abmn:é", min_size=1, max_size=2), st.none() | VALUES), max_size=5))
def test_any_changes(fields: dict[str, object], changes: list[tuple[str, object]]) -> None:
    """What goes on is the body with the same changes made to a dict, in the same order, to the last digit."""
    given = request(**fields)
    expected: dict[str, object] = json.loads(given.encode())
    for name, value in changes:
        if value is None:
            given.remove(name)
            expected.pop(name, None)
        else:
            given.set(name, value)
            expected[name] = value
    after = json.loads(given.encode())
    assert expected == after
    assert [*expected] == [*after]


def test_texts_are_changed_where_they_stand() -> None:
    """With the name that each stands under; ids, roles, images and parameters stay, but for those that are asked for."""
    given = request(
        messages=[
            {"role": "user", "content": "a", "id": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"image_url": {"url": "x" * 300}}]},
        ],
        tools=[{"function": {"name": "c", "arguments": "d"}}],
        user="e",
        stop="f",
    )
    assert given.change_texts(lambda text, key: f"{text}={key}", also=["user"])
    assert [{"role": "user", "content": "a=content", "id": "a"}] == given.messages[:1]
    changed = json.loads(given.encode())
    assert given.messages == changed["messages"]
    assert [{"type": "text", "text": "b=text"}, {"image_url": {"url": "x" * 300}}] == changed["messages"][1]["content"]
    assert [{"function": {"name": "c=name", "arguments": "d=arguments"}}] == changed["tools"]
    assert ("e=user", "f") == (changed["user"], changed["stop"])


@given(FIELDS)
def test_texts_that_stay(fields: dict[str, object]) -> None:
    given = request(**fields)
    before = given.encode()
    assert not given.change_texts(lambda text, key: text, also=["user"])
    assert before == given.encode()


# Refusing


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b'"messages"', id="a string"),
        pytest.param(b"null", id="null"),
        pytest.param(b"<html>", id="HTML"),
        pytest.param(b"messages=Hi", id="a form"),
        pytest.param(body()[:-1], id="cut"),
        pytest.param(body() + b"{}", id="two objects"),
        pytest.param(b"\xef\xbb\xbf" + body(), id="byte order mark"),
        pytest.param(body().decode().encode("utf-16"), id="UTF-16"),
        pytest.param(body().replace(b"Hi", b"\xe4\xbd"), id="cut UTF-8"),
        pytest.param(body().replace(b"Hi", b"\xed\xa0\xbd"), id="half a pair as UTF-8"),
        pytest.param(body().replace(b"Hi", b"\\ud83d"), id="half a pair"),
        pytest.param(body().replace(b"Hi", b"\x01"), id="a control character"),
        pytest.param(body(x=1).replace(b"1", b"NaN"), id="not a number"),
        pytest.param(body(x=1).replace(b"1", b"1" * 400), id="400 digits"),
        pytest.param(body(x=1).replace(b"1", b"1" * 5000), id="5,000 digits"),
        pytest.param(body(x=1).replace(b"1", b"[" * 1_000_000), id="brackets without end"),
        pytest.param(body(x=[[]] * MAX_BRACKETS), id="brackets side by side"),
        pytest.param(body(x=[1] * MAX_MARKS), id="numbers side by side"),
        pytest.param(body(x=["["] * MAX_MARKS), id="strings side by side"),
        pytest.param(body(x={str(n): 1 for n in range(MAX_MARKS // 2)}), id="keys side by side"),
        pytest.param(body(x=1).replace(b"1", b'"' * 1_000_000), id="quotes without end"),
        pytest.param(body(x=1).replace(b"1", b"[" * MAX_DEPTH + b"]" * MAX_DEPTH), id="deep"),
        pytest.param(body(x=1).replace(b"1", b"[" * 990 + b"]" * 990), id="deeper than Python reads"),
        pytest.param(body(x=1).replace(b"1", b'"::",' + b"[" * 990 + b"]" * 990), id="deep, after an error"),
    ],
)
def test_what_is_no_object(data: bytes) -> None:
    """What orjson does not read as an object, or nests or lists too much, is refused as JSON, whatever is wrong."""
    assert ("invalid_json", None) == refusal(data)


def test_brackets_in_a_prompt_are_text() -> None:
    """Only brackets outside strings are counted, wherever a string seems to end."""
    for quoted in ('{"a": [1]}' * MAX_BRACKETS, '\\"[{' * MAX_BRACKETS, "[\\" * (MAX_BRACKETS + 1)):
        data = body(messages=[{"role": "user", "content": quoted}])
        assert data == ChatRequest(data).encode()
        assert ("invalid_json", None) == refusal(body(x=quoted, y=[[]] * MAX_BRACKETS))


@given(st.lists(st.sampled_from(["[", "{", '"', "\\", ",", "a"])).map("".join), st.integers(0, 3))
def test_brackets_are_counted_outside_strings(text: str, brackets: int) -> None:
    """A body with as many brackets as there may be is read, and with one more it is not, whatever its strings hold."""
    base = 3  # the body, its messages, the message
    filler = [[]] * (MAX_BRACKETS - base - 1)
    assert ChatRequest(body(x=filler, user=text * 1000)).get("user") == text * 1000
    assert ("invalid_json", None) == refusal(body(x=[*filler, *[[]] * (brackets + 1)], user=text * 1000))


@given(st.lists(st.sampled_from(["[", ":", '"', "\\", ",", "a"])).map("".join), st.integers(0, 3))
def test_marks_are_counted_outside_strings(text: str, marks: int) -> None:
    """A body with as many marks as there may be is read, and with one more it is not, whatever its strings hold."""
    base = 14  # the body with its four fields, the messages and the message, and the list
    filler = [1] * (MAX_MARKS - base + 1)
    assert ChatRequest(body(x=filler, user=text * 1000)).get("user") == text * 1000
    assert ("invalid_json", None) == refusal(body(x=[*filler, *[1] * (marks + 1)], user=text * 1000))


def test_what_is_as_deep_as_may_be_is_read_and_changed() -> None:
    """A body of MAX_DEPTH levels can be moderated, changed and sent."""
    inside = MAX_DEPTH - 1
    given = ChatRequest(body(x=1).replace(b"1", b"[" * inside + b'"Hi"' + b"]" * inside))
    assert ("x", "Hi") in [*given.texts()]
    given.set("y", given.get("x"))
    assert given.get("x") == json.loads(given.encode())["y"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{"messages":[{"content":"a"}],"messages":[{"content":"b"}]}', id="messages"),
        pytest.param(b'{"messages":[{"content":"a"}],"m\\u0065ssages":[{"content":"b"}]}', id="in an escape"),
        pytest.param(b'{"messages":[{"content":"a","content":"b"}]}', id="in a message"),
        pytest.param(b'{"messages":[{"content":[{"text":"a","text":":"}]}]}', id="in a part"),
        pytest.param(b'{"messages":[{"content":"a"}],"x":[[{"y":{"z":1,"z":1}}]]}', id="anywhere"),
    ],
)
def test_a_key_said_twice(data: bytes) -> None:
    """Servers differ in which of two equal keys they read, so there may not be two."""
    assert ("repeated_key", None) == refusal(data)


@pytest.mark.parametrize("messages", [None, [], {}, "Hi", 1, [None], ["Hi"], [{"content": "Hi"}, []]])
def test_messages(messages: object) -> None:
    """The messages are an array of at least one object."""
    assert ("invalid_messages", None) == refusal(body(messages=messages))


def test_without_messages() -> None:
    """Other fields do not stand in for them."""
    assert ("invalid_messages", None) == refusal(b'{"model":"gpt-4o","prompt":"Hi","Messages":[{}]}')


@pytest.mark.parametrize("stream", ["true", 1, 0, [], {}])
def test_stream_is_a_boolean(stream: object) -> None:
    """A stream that is neither true, false nor null is refused by its name."""
    assert ("invalid_stream", "stream") == refusal(body(stream=stream))


@pytest.mark.parametrize("n", [0, -1, MAX_CHOICES + 1, 1.0, 1.5, "1", True, [], int(DIGITS)])
def test_n_is_a_small_number(n: object) -> None:
    """A number of choices that is no whole number from 1 to 128 is refused by its name."""
    assert ("invalid_n", "n") == refusal(body(n=n))


# Looking


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, ("gpt-4o", False, 1, False)),
        ({"stream": None, "n": None, "stream_options": None}, ("gpt-4o", False, 1, False)),
        ({"stream": True, "n": MAX_CHOICES}, ("gpt-4o", True, 128, False)),
        ({"stream": False, "stream_options": {"include_usage": True}}, ("gpt-4o", False, 1, True)),
        ({"stream_options": {"include_usage": "yes"}}, ("gpt-4o", False, 1, False)),
        ({"model": None}, ("", False, 1, False)),
        ({"model": ["gpt-4o"]}, ("", False, 1, False)),
    ],
)
def test_what_is_asked_for(fields: dict[str, object], seen: tuple[str, bool, int, bool]) -> None:
    """The model, whether to stream, how many choices, whether usage is wanted."""
    given = request(**fields)
    assert seen == (given.model, given.stream, given.choices, given.wants_usage)
    assert [{"role": "user", "content": "Hi"}] == given.messages


@pytest.mark.parametrize(
    ("fields", "speaks"),
    [
        ({"temperature": 1, "stop": "x", "user": "ann"}, False),
        ({"tools": []}, True),
        ({"response_format": {"type": "text"}}, True),
        ({"nobody_has_heard_of_it": None}, True),
    ],
)
def test_what_stands_beside_the_messages(fields: dict[str, object], speaks: bool) -> None:
    """Any field that is not known to be a parameter may say something to the model."""
    assert speaks is request(**fields).speaks_beside_messages
    assert speaks is any(name in fields for name, _ in request(**dict.fromkeys(fields, "Hi")).texts())


@pytest.mark.parametrize(
    ("messages", "contents"),
    [
        ([{"role": "user", "content": "Hi"}, {"content": "", "role": "assistant"}], ["Hi", ""]),
        ([{"role": "user", "content": "a\\b: \n"}], ["a\\b: \n"]),
        ([{"role": "user", "content": "\\u4f60"}], None),  # says 你, too
        ([{"role": "user", "content": "Hi", "name": "ann"}], None),
        ([{"role": "user", "content": "Hi"}, {"role": "wizard", "content": "Hi"}], None),
        ([{"role": ["user"], "content": "Hi"}], None),
        ([{"role": "user", "content": ["Hi"]}], None),
        ([{"role": "assistant", "content": None}], None),
    ],
)
def test_messages_that_are_nothing_but_texts(messages: list[dict[str, Any]], contents: list[str] | None) -> None:
    """Their texts are at hand, and follow the messages when those are changed."""
    given = request(*messages)
    assert contents == given.contents
    given.set("messages", [*messages, {"role": "user", "content": "Ho"}])
    assert (None if contents is None else [*contents, "Ho"]) == given.contents
    given.keep_messages([len(messages)])
    assert ["Ho"] == given.contents == [text for _, text in given.texts()]


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"a:b","messages":[{"role":"user","content":"in code: {\\"a\\":1,\\"a\\":2}"}]}',
        '{"model":"\\u003a","messages":[{"role":"user","content":"\\u003A :"}]}',
        '{"a:b" : 1 , "a:c" : ":" , "messages" : [ { "role" : "user" , "content" : ":\\n:" } ] }',
    ],
)
def test_colons_that_follow_no_key(text: str) -> None:
    """Wherever colons stand, as escapes too, no key is taken for another; and with one that is, the body is refused."""
    assert text.encode() == ChatRequest(text.encode()).encode()
    for twice in ('"x":1,"x":2}', '"x":{"y":1,"y":"\\u003a"}}', '"x":":","x":"\\u003a:"}'):
        assert ("repeated_key", None) == refusal(f"{text[:-1]},{twice}".encode())


# Reading for moderation


def shown(*messages: Any, **fields: object) -> dict[str, list[str]]:
    return {place: text.split("\n") for place, text in request(*messages, **fields).texts()}


def said(**message: object) -> list[str]:
    """The lines that are shown of one message."""
    return shown(message)["messages[0]"]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_every_role(role: str) -> None:
    """A message is shown whoever is said to have written it; its role is not."""
    assert ["Hi"] == said(role=role, content="Hi")


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        pytest.param({"content": "Hi", "name": "Ann"}, ["Hi", "Ann"], id="name"),
        pytest.param({"content": "你好", "tool_call_id": "call_1", "role": "tool"}, ["你好"], id="a tool's result"),
        pytest.param({"refusal": "No", "reasoning_content": "Hm", "x": {"y": ["z"]}}, ["No", "Hm", "z"], id="others"),
        pytest.param({"role": "how to", "id": "你", "type": "a b"}, ["how to", "你", "a b"], id="text where no text is"),
        pytest.param(
            {"content": None, "function_call": {"name": "look", "arguments": '{"q":1}'}},
            ["look", '{"q":1}'],
            id="function_call",
        ),
        pytest.param(
            {"tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
            ["look", "{}"],
            id="tool_calls",
        ),
        pytest.param(
            {"tool_calls": [{"function": {"arguments": {"你": "好", "q": {"r": 1}}}}]},
            ["你", "好", "q"],
            id="arguments as an object, whose keys are text",
        ),
        pytest.param(
            {"content": [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]}, ["Hi"], id="a part"
        ),
        pytest.param({"content": ["Hi", " you"]}, ["Hi you"], id="parts that are strings"),
        pytest.param({"content": [{"text": 1}, {"text": {"x": "Hi"}}, ["a", "b"], None]}, ["Hi", "ab", "a", "b"], id="odd"),
        pytest.param(
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "H"}, {"text": "m."}]}]},
            ["Hm.", "H", "m."],
            id="thinking",
        ),
        pytest.param({"content": [{"type": "input_audio", "input_audio": {"data": IMAGE, "format": "wav"}}, {"text": "?"}]},
                     ["?"], id="speech"),
        pytest.param({"content": [{"type": "file", "file": {"filename": "你.pdf", "file_data": IMAGE}}]}, ["你.pdf"], id="file"),
    ],
)  # fmt: skip
def test_what_a_message_says(message: dict[str, object], lines: list[str]) -> None:
    """Every string of a message is shown, a line each; ids and types are not, as long as they look like ones."""
    assert lines == said(**message)


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        pytest.param(["敏", "感", "词"], ["敏感词", "敏", "感", "词"], id="a phrase cut in three"),
        pytest.param(["buy porn", "please"], ["buy pornplease", "buy porn", "please"], id="a word end hidden"),
        pytest.param(["porn\u200b", "", "\u200bx"], ["porn\u200b\u200bx", "porn\u200b", "\u200bx"], id="by nothing"),
        pytest.param(["Look: ", "here"], ["Look: here"], id="set apart"),
        pytest.param(["Look", " here"], ["Look here"], id="set apart by the second"),
        pytest.param(["\u200b", "Look"], ["\u200bLook", "\u200b", "Look"], id="nothing alone"),
    ],
)
def test_parts_of_a_content(parts: list[str], lines: list[str]) -> None:
    """Parts are shown as joined with nothing, and one by one too where that makes one word of two."""
    image = {"type": "image_url", "image_url": {"url": IMAGE}}
    assert lines == said(content=[{"type": "text", "text": part} for part in parts])
    assert lines == said(content=[each for part in parts for each in ({"type": "text", "text": part}, image)])


@pytest.mark.parametrize(
    ("url", "lines"),
    [
        pytest.param(IMAGE, [], id="a long data URL is no text"),
        pytest.param("https://a.example/?q=porn", ["https://a.example/?q=porn"], id="an address is"),
        pytest.param("data:image/svg+xml;utf8,<svg> " + "A" * 300, None, id="text in a data URL is"),
    ],
)
def test_images(url: str, lines: list[str] | None) -> None:
    """What is only bytes in letters is shown to nobody."""
    part = {"type": "image_url", "image_url": {"url": url, "detail": "high"}}
    expected = [url] if lines is None else lines
    assert expected == shown({"content": [part]}).get("messages[0]", [])


@pytest.mark.parametrize("field", ["content", "name", "reasoning_content", "arguments"])
def test_prose_is_never_bytes(field: str) -> None:
    """Where text belongs, a long text without a space is shown too."""
    text = "how_to_build_a_bomb_" * 20
    assert [text] == said(**{field: text})
    assert [text] == said(content=[{"type": "text", "text": text}])


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        pytest.param({"content": r"\u4f60"}, [r"\u4f60", "你"], id="content"),
        pytest.param({"content": r"C:\new\table"}, [r"C:\new\table"], id="a path is no escape"),
        pytest.param(
            {"tool_calls": [{"function": {"name": "look", "arguments": r'{"q":"\u4f60\ud83d\ude00"}'}}]},
            ["look", r'{"q":"\u4f60\ud83d\ude00"}', '{"q":"你😀"}'],
            id="arguments",
        ),
        pytest.param({"arguments": r"\x"}, [r"\x"], id="arguments, no escape"),
        pytest.param({"arguments": r"敏\/感"}, [r"敏\/感", "敏/感"], id="arguments, another escape"),
        pytest.param({"role": "tool", "content": r'{"q":"\u654F\u611f"}'}, [r'{"q":"\u654F\u611f"}', '{"q":"敏感"}'], id="a result"),
        pytest.param({"content": r"\ud83d"}, [r"\ud83d", "\ufffd"], id="half a pair"),
        pytest.param({"content": [{"text": r"\u4f"}, {"text": "60"}]}, [r"\u4f60", "你", r"\u4f", "60"], id="cut by parts"),
    ],
)  # fmt: skip
def test_escapes_hide_nothing(message: dict[str, object], lines: list[str]) -> None:
    """A text with JSON escapes is shown as it stands and as it is meant."""
    assert lines == said(**message)


def test_tools_and_formats() -> None:
    """Names, descriptions and the names of properties are shown; the words of JSON Schema are not."""
    schema = {
        "type": "object",
        "title": "T",
        "properties": {
            "city": {"type": "string", "description": "Where", "enum": ["A", "B"]},
            "name": {"type": "integer"},
        },
        "required": ["city"],
        "an aside": 1,
    }
    lines = ["T", "city", "Where", "A", "B", "name", "city", "an aside"]
    function = {"name": "look", "description": "Looks", "parameters": schema, "strict": True}
    seen = shown(
        tools=[{"type": "function", "function": function}],
        functions=[function],
        response_format={"type": "json_schema", "json_schema": {"name": "form", "schema": schema}},
        prediction={"type": "content", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]},
    )
    assert {
        "messages[0]": ["Hi"],
        "tools": ["look", "Looks", *lines],
        "functions": ["look", "Looks", *lines],
        "response_format": ["form", *lines],
        "prediction": ["你好", "你", "好"],
    } == seen


def test_fields_nobody_has_heard_of() -> None:
    """A field that is no known parameter is shown: another server may take it for the prompt."""
    seen = shown(Messages=[{"role": "user", "content": "a"}], prompt="b" * 300, documents=[{"title": "c"}], top_k=1)
    assert {"messages[0]": ["Hi"], "Messages": ["a"], "prompt": ["b" * 300], "documents": ["c"]} == seen


def test_parameters_say_nothing() -> None:
    """What only sets something is shown to nobody, nor is what holds no text."""
    seen = shown(
        {"role": "assistant", "content": None},
        {"role": "user", "content": ""},
        {"role": "user", "content": []},
        {"role": "user", "content": "Hi"},
        user="Ann Lee",
        metadata={"a": "b c"},
        stop=["\n\n"],
        tool_choice="auto",
        reasoning={"effort": "high"},
        response_format={"type": "json_object"},
        chat_template_kwargs={"enable_thinking": False},
        logit_bias={"50256": -100},
    )
    assert {"messages[3]": ["Hi"]} == seen


TEXT = st.text("敏感词ab \n\u200b\\", max_size=6)


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_no_phrase_is_cut_by_parts(parts: list[str]) -> None:
    """Each part, and all of them joined with nothing, are parts of what is shown."""
    [*texts] = request({"role": "user", "content": [{"type": "text", "text": part} for part in parts]}).texts()
    text = fold("".join(text for _, text in texts))
    assert fold("".join(parts)) in text
    assert all(fold(part) in text for part in parts)


def test_the_body_is_read_as_msgspec_reads_it() -> None:
    """What orjson reads can be taken apart: the two parsers refuse the same numbers, escapes and characters."""
    for value in (b"-0.0e-5", b"1E+2", b'"\\u0000\x7f"', b"18446744073709551616", b"0.1234567890123456789e-30"):
        data = b'{"messages":[{}],"x":' + value + b"}"
        given = ChatRequest(data)
        given.update({"messages": [{}], "y": 1})
        assert {"messages", "x", "y"} == set(msgspec.json.decode(given.encode()))
        assert value in given.encode()


class TestUsage:
    """What is asked of an upstream for a meter of ours."""

    def test_it_is_asked_for(self) -> None:
        request = ChatRequest(body(stream=True, seed=10**60))
        sent = request.sent_on(usage=True)
        assert {"include_usage": True} == json.loads(sent)["stream_options"]
        assert 10**60 == json.loads(sent)["seed"]
        assert not request.wants_usage
        assert request.encode() == body(stream=True, seed=10**60)

    def test_other_options_stay(self) -> None:
        given = {"include_usage": False, "include_obfuscation": False, "big": 10**60}
        sent = json.loads(ChatRequest(body(stream=True, stream_options=given)).sent_on(usage=True))
        assert {**given, "include_usage": True} == sent["stream_options"]


@pytest.mark.parametrize(
    "fields",
    [
        {"Model": "b"}, {"MODEL": "b"}, {"Models": ["b"]}, {"model\u017f": ["b"]}, {"models": "b"}, {"models": {"a": 1}},
        {"models": [{"name": "b"}]}, {"models": ["b"] * 33},
    ],
)  # fmt: skip
def test_models_that_another_reader_would_see(fields):
    """Servers in Go take `Model` for `model`: who is let in by the one is not to get the other."""
    body = json.dumps({"model": "a", **fields, "messages": [{"role": "user", "content": "x"}]}).encode()
    with pytest.raises(InvalidRequest) as refused:
        ChatRequest(body)
    assert refused.value.code == "invalid_model"


def test_models_that_are_to_be_tried_in_place():
    for models in (None, [], ["b", "c"]):
        body = json.dumps({"model": "a", "models": models, "messages": [{"role": "user", "content": "x"}]}).encode()
        assert ChatRequest(body).models == ("a", *(models or ()))
