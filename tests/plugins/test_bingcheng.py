"""What becomes of a request to the second API before anything else looks at it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Reject
from relay.pure.request import ChatRequest, InvalidRequest, JsonObject
from relay_plugins.bingcheng import MAX_CHARS, MAX_TURNS, Bingcheng

[PATH] = Bingcheng.routes

# The request that the page prints. There a comment follows `true`, which says that streaming may be left out; JSON has
# no comments, and written on one line it would hide the closing brace.
PRINTED = '{ "messages" : [{"role":"user","content":"你是谁?"}], "model": "gpt-3.5-turbo", "stream":true }'
COMMENTED = PRINTED.replace(" }", " //非SSE流式请求,这一行可不加 }")

HISTORY = " Q:你好! A:你好,有什么可以帮助你的。 Q:今天天气怎么样?"
MESSAGES = [
    {"role": "user", "content": "你好!"},
    {"role": "assistant", "content": "你好,有什么可以帮助你的。"},
    {"role": "user", "content": "今天天气怎么样?"},
]


def translated(body: str | bytes, **options: Any) -> bytes:
    given = JsonObject(body.encode() if isinstance(body, str) else body)
    return Bingcheng(**options).translate(PATH, given).encode()


def chat(**fields: object) -> Any:
    """The chat completion that a request with these fields becomes."""
    return json.loads(translated(json.dumps(fields)))


def test_the_path() -> None:
    """It is the page's."""
    assert "/api/v2.Gptliu/search" == PATH


def test_the_request_of_the_page() -> None:
    """It is a chat completion already and goes on byte for byte."""
    assert PRINTED.encode() == translated(PRINTED)


def test_its_comment_is_no_json() -> None:
    """Somebody who copies the comment too is told what is wrong."""
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        translated(COMMENTED)


@pytest.mark.parametrize("name", ["keyword", "Q"])
def test_a_history(name: str) -> None:
    """Under both names that the page uses: messages, the default model, and no stream unless it is asked for."""
    assert {"model": "gpt-3.5-turbo", "messages": MESSAGES} == chat(**{name: HISTORY})
    request = ChatRequest(translated(json.dumps({name: HISTORY})))
    assert (MESSAGES, "gpt-3.5-turbo", False) == (request.messages, request.model, request.stream)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"messages": MESSAGES, "keyword": "x", "Q": "y"}, MESSAGES, id="messages and both"),
        pytest.param({"messages": [], "keyword": "x"}, [], id="messages that are empty"),
        pytest.param({"messages": "hello", "keyword": "x"}, "hello", id="messages that are none"),
        pytest.param({"messages": MESSAGES, "keyword": 5, "Q": []}, MESSAGES, id="messages and what is no string"),
        pytest.param({"messages": None, "keyword": "x"}, [{"role": "user", "content": "x"}], id="null and keyword"),
        pytest.param({"keyword": "x", "Q": "y"}, [{"role": "user", "content": "x"}], id="keyword and Q"),
        pytest.param({"keyword": "x", "Q": 5}, [{"role": "user", "content": "x"}], id="keyword and a number"),
        pytest.param({"keyword": None, "Q": "y"}, [{"role": "user", "content": "y"}], id="null and Q"),
        pytest.param({"messages": None, "keyword": None, "Q": None}, None, id="null"),
        pytest.param({"keyword": " Q: A: ", "Q": "y"}, [], id="a history of nothing"),
    ],
)
def test_which_one_counts(fields: dict[str, object], said: object) -> None:
    """`messages` before `keyword` before `Q`; null is as good as absent; none of the strings is sent on."""
    assert {"model": "gpt-3.5-turbo", "messages": said} == chat(**fields)


@pytest.mark.parametrize("fields", [{}, {"messages": None}, {"keyword": ""}, {"Q": "A:"}, {"keyword": None, "x": 1}])
def test_nothing_is_asked(fields: dict[str, object]) -> None:
    """What comes out has no messages, which every chat completion needs."""
    with pytest.raises(InvalidRequest, match=r"^Unsupported messages\.$") as caught:
        ChatRequest(translated(json.dumps(fields)))
    assert "invalid_messages" == caught.value.code


@pytest.mark.parametrize(
    ("model", "expected"),
    [(None, "glm"), ("gpt-4", "gpt-4"), ("", ""), (5, 5)],
)
def test_the_model(model: object, expected: object) -> None:
    """`default_model` stands for one that is not named; what is named goes on, to be refused where nobody serves it."""
    for body in ({"keyword": "x", "model": model}, {"messages": MESSAGES, "model": model}):
        assert expected == json.loads(translated(json.dumps(body), default_model="glm"))["model"]
    assert "glm" == json.loads(translated('{"keyword":"x"}', default_model="glm"))["model"]


@pytest.mark.parametrize("name", ["keyword", "Q"])
@pytest.mark.parametrize("history", [5, True, [], ["Q:a"], {"Q": "a"}, 1.5])
def test_a_history_that_is_no_string(name: str, history: object) -> None:
    """It is refused, and the field is named."""
    with pytest.raises(
        Reject, match=f"^`{name}` has to be a string; send a list of messages as `messages`.$"
    ) as caught:
        chat(**{name: history})
    assert (400, "invalid_keyword", name) == (caught.value.status, caught.value.code, caught.value.param)


@pytest.mark.parametrize(
    ("longest", "more"),
    [
        pytest.param("字" * MAX_CHARS, "字", id="characters"),
        pytest.param("Q:a " * MAX_TURNS, "Q:a", id="turns"),
        pytest.param("A: " * MAX_TURNS, "A:", id="empty turns"),
    ],
)
def test_a_history_that_is_too_long(longest: str, more: str) -> None:
    """There is an end to what is read, and it is told."""
    assert len(chat(keyword=longest)["messages"]) in (0, 1, MAX_TURNS)
    for name in ("keyword", "Q"):
        with pytest.raises(Reject, match="500,000 characters and 10,000 turns; leave out the oldest") as caught:
            chat(**{name: longest + more})
        assert (400, "keyword_too_long", name) == (caught.value.status, caught.value.code, caught.value.param)


@pytest.mark.parametrize("body", ["", "[]", "null", '"Q:a"', "{", '{"keyword":"a","keyword":"b"}', '{"Q":"\\ud800"}'])
def test_a_body_that_is_no_object(body: str) -> None:
    """It is refused as in every other request: servers differ in what they read in it."""
    with pytest.raises(InvalidRequest):
        translated(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
)
OTHER = st.dictionaries(st.sampled_from(["user", "stream", "temperature", "q", "keywords", "质"]), JSON)


@given(other=OTHER, number=st.integers(0, 10**60), name=st.sampled_from(["keyword", "Q"]))
def test_all_else_goes_on(other: dict[str, Any], number: int, name: str) -> None:
    """Other fields are what they were, numbers of 60 digits to the last."""
    body = json.dumps({**other, name: HISTORY, "number": number}, ensure_ascii=False)
    assert {**other, "number": number, "model": "gpt-3.5-turbo", "messages": MESSAGES} == json.loads(translated(body))


@given(other=OTHER)
def test_a_chat_completion_goes_on_byte_for_byte(other: dict[str, Any]) -> None:
    """If it names a model and brings no history there is nothing to translate."""
    body = json.dumps({"model": "m", "messages": MESSAGES, **other}, indent=1)
    assert body.encode() == translated(body)
