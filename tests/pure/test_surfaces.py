"""What stands where in the frames of real servers, and that nothing else can stand anywhere unseen.

The frames are in the shapes of their servers, shortened. Each is read in three ways: what it says by surface, which of
its choices finish, and how many keys it has, counted by force.
"""

import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from relay.pure.openai import Chunk, Frame
from relay.pure.surfaces import (
    CHOICE_METADATA,
    FRAME_METADATA,
    MESSAGE_METADATA,
    OPAQUE_CHARS,
    PART_METADATA,
    PART_SURFACES,
    PROSE,
    TOOL_METADATA,
    IndexUnclearError,
    Kind,
    Reading,
    Text,
    finished,
    index_of,
    is_opaque,
    read,
)

AUDIO = "UklGRiQAAABXQVZFZm10IBAAAAABAAEA" * 10


def plain(surface: str, text: str) -> Text:
    return surface, Kind.PLAIN, text


def call(arguments: str, name: str = "", surface: str = "tool_calls.0") -> list[Text]:
    return [(surface, Kind.NAME, name)] * bool(name) + [(surface, Kind.ESCAPED, arguments)] * bool(arguments)


class Case(NamedTuple):
    """A frame and what it says: the texts of each choice by index, the indexes that finish, and what is loose."""

    server: str
    frame: Frame
    texts: dict[int, list[Text]]
    finished: tuple[int, ...] = ()
    loose: tuple[Text, ...] = ()


def chunk(*choices: Frame, **more: object) -> Frame:
    """What all servers send round the choices."""
    head = {"id": "chatcmpl-8f3", "object": "chat.completion.chunk", "created": 1721075653, "model": "gpt-4o"}
    return {**head, "choices": list(choices), **more}


def choice(delta: object, finish: object = None, index: int = 0, **more: object) -> Frame:
    return {"index": index, "delta": delta, "finish_reason": finish, **more}


SAFE = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"filtered": False, "detected": False}}
USAGE = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 0}}

FRAMES = [
    Case(
        "OpenAI: role and obfuscation",
        chunk(
            choice({"role": "assistant", "content": "", "refusal": None}, logprobs=None),
            service_tier="default",
            system_fingerprint="fp_eeff13170a",
            usage=None,
            obfuscation="hX4kP0aZ",
        ),
        {0: []},
    ),
    Case("OpenAI: usage without choices", chunk(usage=USAGE, obfuscation="q"), {}),
    Case(
        "OpenAI: a tool call opens beside content null",
        chunk(
            choice(
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
                    ],
                    "refusal": None,
                }
            )
        ),
        {0: call("", "look")},
    ),
    Case(
        "OpenAI: two tool calls go on",
        chunk(
            choice(
                {
                    "tool_calls": [
                        {"index": 1, "function": {"arguments": '{"q":"\\u4f60'}},
                        {"index": 0, "function": {"arguments": '"}'}},
                    ]
                }
            )
        ),
        {0: [*call('{"q":"\\u4f60', surface="tool_calls.1"), *call('"}')]},
    ),
    Case(
        "OpenAI: a custom tool",
        chunk(choice({"tool_calls": [{"index": 0, "type": "custom", "custom": {"name": "sh", "input": "ls"}}]})),
        {0: [plain("?tool_calls.0.custom.name", "sh"), plain("?tool_calls.0.custom.input", "ls")]},
    ),
    Case(
        "OpenAI: function_call, arguments before the name",
        chunk(choice({"function_call": {"arguments": "{}", "name": "look"}})),
        {0: call("{}", "look", surface="function_call")},
    ),
    Case("OpenAI: refusal", chunk(choice({"refusal": "I cannot"})), {0: [plain("refusal", "I cannot")]}),
    Case(
        "OpenAI: speech",
        chunk(choice({"audio": {"id": "audio_1", "transcript": "Hi", "data": AUDIO, "expires_at": 1}})),
        {0: [plain("audio", "Hi")]},
    ),
    Case(
        "OpenAI: logprobs",
        chunk(
            choice(
                {"content": "Hi!"},
                logprobs={
                    "content": [
                        {
                            "token": "Hi",
                            "logprob": -0.1,
                            "bytes": [72, 105],
                            "top_logprobs": [{"token": "Yo", "logprob": -2.0, "bytes": None}],
                        },
                        {"token": "!", "logprob": -0.2, "bytes": [33], "top_logprobs": []},
                    ],
                    "refusal": None,
                },
            )
        ),
        {0: [plain("content", "Hi!"), plain("logprobs.content", "Hi!")]},
    ),
    Case(
        "OpenAI: annotations",
        chunk(choice({"annotations": [{"type": "url_citation", "url_citation": {"title": "T", "start_index": 1}}]})),
        {0: [plain("?annotations.type", "url_citation"), plain("?annotations.url_citation.title", "T")]},
    ),
    Case(
        "completions: text and token lists",
        chunk(
            {
                "text": "Hi!",
                "index": 0,
                "logprobs": {"tokens": ["Hi", "!"], "token_logprobs": [-0.1, None], "top_logprobs": [{"Hi": -0.1}]},
                "finish_reason": "length",
            }
        ),
        {0: [plain("text", "Hi!"), plain("logprobs.tokens", "Hi!")]},
        (0,),
    ),
    Case(
        "OpenRouter: reasoning twice, provider",
        {
            "id": "gen-1",
            "provider": "DeepInfra",
            "model": "deepseek/deepseek-r1",
            "object": "chat.completion.chunk",
            "created": 1750000000,
            "choices": [
                choice(
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning": "Hm",
                        "reasoning_details": [
                            {"type": "reasoning.text", "text": "Hm", "format": "unknown", "index": 0}
                        ],
                    },
                    native_finish_reason=None,
                    logprobs=None,
                )
            ],
        },
        {0: [plain("reasoning", "Hm"), plain("reasoning_details", "Hm"), plain("reasoning_details[0]", "Hm")]},
    ),
    Case(
        "OpenRouter: encrypted reasoning",
        chunk(
            choice({"content": "", "reasoning_details": [{"type": "reasoning.encrypted", "data": AUDIO, "id": "r"}]})
        ),
        {0: []},
    ),
    Case(
        "OpenRouter: second finish with usage",
        chunk(
            choice({"role": "assistant", "content": ""}, "stop", native_finish_reason="STOP"),
            usage={**USAGE, "cost": 0.1, "cost_details": {"upstream_inference_cost": None}},
        ),
        {0: []},
        (0,),
    ),
    Case(
        "Azure: prompt filter results",
        {
            "choices": [],
            "created": 0,
            "id": "",
            "model": "",
            "object": "",
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}],
        },
        {},
    ),
    Case(
        "Azure: content filter results, latency checkpoint",
        chunk(
            choice({"content": "Hi"}, content_filter_results=SAFE, logprobs=None),
            obfuscation="kk",
            latency_checkpoint={"engine_tbt_ms": 10, "service_ttft_ms": 200},
        ),
        {0: [plain("content", "Hi")]},
    ),
    Case(
        "Azure: a choice without a delta",
        chunk(
            {
                "index": 0,
                "finish_reason": None,
                "content_filter_offsets": {"check_offset": 44, "start_offset": 44, "end_offset": 198},
                "content_filter_results": SAFE,
            }
        ),
        {0: []},
    ),
    Case(
        "Writer: the text again in message, n = 2",
        chunk(
            choice({"content": "Hi", "role": "assistant"}, message={"content": "Hi", "role": "assistant"}),
            choice({"content": "Ho"}, "stop", 1, message={"content": "Ho", "role": "assistant"}),
        ),
        {
            0: [plain("content", "Hi"), plain("message.content", "Hi")],
            1: [plain("content", "Ho"), plain("message.content", "Ho")],
        },
        (1,),
    ),
    Case(
        "Groq: x_groq",
        chunk(choice({}, "stop"), x_groq={"id": "req_01j", "usage": {**USAGE, "queue_time": 0.01}}),
        {0: []},
        (0,),
    ),
    Case(
        "Vercel: provider_metadata",
        chunk(choice({"provider_metadata": {"gateway": {"routing": {"finalProvider": "xai"}}}}, "stop")),
        {0: [plain("?provider_metadata.gateway.routing.finalProvider", "xai")]},
        (0,),
    ),
    Case(
        "x.ai: reasoning_content",
        chunk(choice({"role": "assistant", "reasoning_content": "Hm"})),
        {0: [plain("reasoning_content", "Hm")]},
    ),
    Case("Hugging Face: role only", chunk(choice({"role": "assistant", "tool_call_id": None})), {0: []}),
    Case(
        "vLLM: text in the finish chunk",
        chunk(choice({"content": "."}, "stop", stop_reason="</s>", token_ids=None)),
        {0: [plain("content", ".")]},
        (0,),
    ),
    Case("vLLM: usage with choices null", {**chunk(usage=USAGE), "choices": None}, {}),
    Case(
        "llama.cpp: timings",
        chunk(choice({}, "stop"), timings={"prompt_n": 12, "predicted_per_second": 31.4}),
        {0: []},
        (0,),
    ),
    Case(
        "llama.cpp: content null, then reasoning",
        chunk(choice({"role": "assistant", "content": None, "reasoning_content": "Hm"})),
        {0: [plain("reasoning_content", "Hm")]},
    ),
    Case(
        "Together: text and token_id",
        chunk(choice({"role": "assistant", "content": "Hi", "token_id": 13347}, text="Hi", seed=None), seed=42),
        {0: [plain("content", "Hi"), plain("text", "Hi")]},
    ),
    Case(
        "Mistral: thinking in an array of parts",
        chunk(
            choice(
                {
                    "content": [
                        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}], "closed": True},
                        {"type": "text", "text": "Hi"},
                        "!",
                    ]
                }
            ),
            p="abcdefghijk",
        ),
        {0: [plain("content.thinking", "Hm"), plain("content", "Hi"), plain("content", "!")]},
    ),
    Case(
        "Mistral: a string in the finish chunk, usage",
        chunk(choice({"content": " bye"}, "stop"), usage=USAGE, p="abc"),
        {0: [plain("content", " bye")]},
        (0,),
    ),
    Case(
        "DeepSeek: usage null in every chunk",
        chunk(choice({"content": None, "reasoning_content": "Hm"}, logprobs=None), usage=None),
        {0: [plain("reasoning_content", "Hm")]},
    ),
    Case(
        "Qwen: tool_calls [] in every chunk, another order",
        {
            "choices": [
                {
                    "finish_reason": None,
                    "logprobs": None,
                    "delta": {"tool_calls": [], "reasoning_content": "Hm", "content": None},
                    "index": 0,
                }
            ],
            "object": "chat.completion.chunk",
            "usage": None,
            "id": "chatcmpl-8f3",
        },
        {0: [plain("reasoning_content", "Hm")]},
    ),
    Case(
        "Gemini: a thought signature",
        chunk(
            choice(
                {
                    "tool_calls": [
                        {
                            "extra_content": {"google": {"thought_signature": AUDIO}},
                            "function": {"arguments": "{}", "name": "look"},
                            "id": "function-call-1",
                            "type": "function",
                        }
                    ]
                }
            )
        ),
        {0: call("{}", "look")},
    ),
    Case(
        "Ollama, SGLang: finish_reason empty in every chunk",
        chunk(choice({"role": "assistant", "content": "Hi"}, "", matched_stop=None), system_fingerprint="fp_ollama"),
        {0: [plain("content", "Hi")]},
    ),
    Case(
        'KoboldCpp: finish_reason "null"',
        chunk(choice({"role": "assistant", "content": "Hi"}, "null")),
        {0: [plain("content", "Hi")]},
    ),
    Case(
        "Perplexity: citations outside the choices",
        chunk(
            choice({"content": "Hi"}), citations=["https://a.example"], search_results=[{"title": "T", "date": None}]
        ),
        {0: [plain("content", "Hi")]},
        loose=(plain("?citations", "https://a.example"), plain("?search_results.title", "T")),
    ),
    Case(
        "any: an error in the stream",
        {"error": {"message": "Overloaded", "code": 529}},
        {},
        loose=(plain("?error.message", "Overloaded"),),
    ),
    Case(
        "any: choices that are no objects",
        chunk("a", ["b", {"c": "d"}], None),  # type: ignore[arg-type]
        {},
        loose=(plain("?choices", "a"), plain("?choices", "b"), plain("?choices.c", "d")),
    ),
    Case(
        "any: a delta, a call, a token and arguments of other types",
        chunk(
            {"index": 0, "delta": "a", "message": ["b"], "logprobs": "c"},
            choice(
                {"tool_calls": ["d", {"id": ["e"], "function": {"arguments": {"x": "f"}, "strict": True}}]}, index=1
            ),
            choice({"content": {"text": "g"}}, index=2, logprobs={"content": [{"token": {"x": "h"}}, ["i"]], "x": "j"}),
            choice({"content": ["", {"text": ""}, ["k"]], "audio": {"id": {"x": "l"}, "transcript": ""}}, index=3),
        ),
        {
            0: [plain("?delta", "a"), plain("?message", "b"), plain("?logprobs", "c")],
            1: [plain("?tool_calls", "d"), plain("?tool_calls.1.id", "e"), plain("?tool_calls.1.arguments.x", "f")],
            2: [
                plain("?content.text", "g"),
                plain("?logprobs.content.token.x", "h"),
                plain("?logprobs.content", "i"),
                plain("?logprobs.x", "j"),
            ],
            3: [plain("?content", "k"), plain("?audio.id.x", "l")],
        },
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.server) for case in FRAMES])
def test_servers(case: Case) -> None:
    """What a frame of each server says, by surface; which choices finish."""
    frame = Chunk.body(json.dumps(case.frame).encode()).json
    assert frame is not None
    reading = read(frame)
    assert case.texts == {part.index: part.texts for part in reading.choices}
    assert case.finished == tuple(part.index for part in reading.choices if part.finished)
    assert list(case.loose) == reading.loose


def test_a_whole_reply() -> None:
    """In a reply that is not streamed the message is what the delta is in a stream; its prose has an order."""
    message = {"role": "assistant", "refusal": None, "content": "Hi", "reasoning_content": "Hm", "tool_calls": []}
    frame = chunk({"index": 0, "message": message, "finish_reason": "stop"}, usage=USAGE)
    [part] = read(frame, whole=True).choices
    assert [plain("content", "Hi"), plain("reasoning_content", "Hm")] == part.texts
    assert part.finished
    assert ("reasoning_content", "reasoning", "content", "refusal") == PROSE


@pytest.mark.parametrize(
    ("given", "index"),
    [(3, 3), (0, 0), (-1, -1), (10**9, 10**9), (2.0, 2), (None, 7)],
)
def test_the_number_of_a_choice(given: object, index: int) -> None:
    """An index is a whole number that is exact for every reader; without one a choice is numbered by its place."""
    assert index == index_of({"index": given}, 7)


@pytest.mark.parametrize("given", [2.5, "2", True, 2**53, float("nan"), [], {}])
def test_an_index_that_readers_take_for_different_numbers_is_refused(given: object) -> None:
    """Two choices for one reader are one for another, and so are two tool calls, and two parts of an array."""
    call = {"index": given, "function": {"arguments": "{}"}}
    part = {"index": given, "text": "a"}
    for frame in (
        chunk(choice({"content": "a"}) | {"index": given}),
        chunk(choice({"tool_calls": [call]})),
        chunk(choice({"content": [part]})),
    ):
        with pytest.raises(IndexUnclearError):
            read(frame)


def test_parts_of_an_array_are_read_as_they_come_and_by_index() -> None:
    """Clients join them either way."""
    parts = [{"index": 0, "type": "text", "text": "b"}, {"index": 1, "type": "text", "text": "a"}]
    [said] = read(chunk(choice({"content": parts}))).choices
    assert [("content", "b"), ("content[0]", "b"), ("content", "a"), ("content[1]", "a")] == [
        (surface, text) for surface, _, text in said.texts
    ]


def test_a_dot_in_a_name_is_no_step_of_a_path() -> None:
    """`{"a.b": …}` and `{"a": {"b": …}}` are two texts."""
    [said] = read(chunk(choice({"x": {"a.b": "1", "a": {"b": "2"}}}))).choices
    assert 2 == len({surface for surface, _, _ in said.texts})


def test_the_number_of_a_choice_is_the_same_for_both_parsers() -> None:
    """An index that orjson reads as a float is no other choice's for the standard library, which keeps its digits."""
    for text in (
        "-9223372036854775809",
        "9007199254740993",
        "18446744073709551615",
        "18446744073709551616",
        "1e30",
        "1.0",
    ):
        data = b'{"index":' + text.encode() + b"}"
        assert numbers(json.loads(data)) == numbers(Chunk.body(data).json or {})


def numbers(entry: Frame) -> int | None:
    """Its index, None if it is unclear."""
    try:
        return index_of(entry, 7)
    except IndexUnclearError:
        return None


@pytest.mark.parametrize(
    ("value", "opaque"),
    [
        pytest.param("A" * OPAQUE_CHARS, False, id="short"),
        pytest.param("A" * (OPAQUE_CHARS + 1), True, id="base64"),
        pytest.param("A" * OPAQUE_CHARS + " b", False, id="a space"),
        pytest.param("A" * OPAQUE_CHARS + "你", False, id="Han"),
        pytest.param("ยาเสพติด" * 40, False, id="Thai has no spaces"),
        pytest.param("ｐｏｒｎ" * 80, False, id="fullwidth letters"),
        pytest.param("A\u200b" * 200, False, id="zero-width spaces"),
    ],
)
def test_opaque(value: str, opaque: bool) -> None:
    """Only a long value of visible ASCII is no text."""
    assert opaque == is_opaque(value)
    reading = read(chunk(choice({"x": value})))
    assert opaque == (not reading.choices[0].texts)
    assert len(reading.unknown) == 1
    assert (reading.unknown if opaque else []) == reading.opaque


def test_unknown_strings_can_be_taken_out() -> None:
    """Each unknown string is found again by its container and key, and its text can be forgotten."""
    frame = chunk(choice({"content": "Hi", "x": ["a", {"y": "b"}]}, z="c"), w="d")
    reading = read(frame)
    assert ["a", "b", "c", "d"] == sorted(container[key] for container, key in reading.unknown)
    reading.forget_unknown()
    assert [] == reading.loose
    assert [plain("content", "Hi")] == reading.choices[0].texts


# Any JSON, and JSON that is nearly a frame: every known name with values of every type.

NAMES = sorted(
    FRAME_METADATA | CHOICE_METADATA | MESSAGE_METADATA | PART_METADATA | PART_SURFACES
    | set("choices delta message tool_calls function function_call name arguments logprobs tokens token bytes logprob "
          "top_logprobs text thinking audio transcript id x y".split())
)  # fmt: skip
LEAVES = st.sampled_from(["text", "text", "", None, True, 1, 0.5])
JUNK = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES), below, max_size=4),
    max_leaves=8,
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with some of these fields and one more; now and then anything else."""
    known = {name: st.one_of(strategy, strategy, JUNK) for name, strategy in fields.items()}
    objects = st.tuples(
        st.fixed_dictionaries({}, optional=known), st.dictionaries(st.sampled_from(NAMES), JUNK, max_size=1)
    ).map(lambda both: both[1] | both[0])
    return st.one_of(objects, objects, objects, JUNK)


def lists(each: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(each, max_size=3)


FUNCTION = some(name=LEAVES, arguments=LEAVES)
PARTS = lists(some(type=LEAVES, text=LEAVES, thinking=lists(some(type=LEAVES, text=LEAVES))) | LEAVES)
MESSAGE = some(
    role=LEAVES,
    content=LEAVES | PARTS,
    reasoning=LEAVES,
    reasoning_details=PARTS,
    tool_calls=lists(some(index=LEAVES, id=LEAVES, type=LEAVES, function=FUNCTION)),
    function_call=FUNCTION,
    audio=some(id=LEAVES, transcript=LEAVES, data=LEAVES),
)
TOKENS = lists(some(token=LEAVES, bytes=JUNK, logprob=JUNK, top_logprobs=JUNK) | LEAVES)
CHOICE = some(
    index=LEAVES,
    delta=MESSAGE,
    message=MESSAGE,
    text=LEAVES,
    logprobs=some(content=TOKENS, tokens=TOKENS, top_logprobs=JUNK),
    finish_reason=JUNK,
    content_filter_results=JUNK,
)
NEARLY = some(id=LEAVES, choices=lists(CHOICE), usage=JUNK, x=JUNK).filter(lambda frame: isinstance(frame, dict))


def alternatives(names: frozenset[str]) -> str:
    return f"(?:{'|'.join(sorted(names))})"


# The places of strings that say nothing. An element of an array is at `#`.
METADATA = re.compile(
    rf"""
      {alternatives(FRAME_METADATA)}                       (?:\..*)?
    | choices\.\#\.{alternatives(CHOICE_METADATA)}         (?:\..*)?
    | choices\.\#\.logprobs\.(?:[^.]+\.\#\.)?top_logprobs  (?:\..*)?
    | choices\.\#\.(?:delta|message)\.(?:
          {alternatives(MESSAGE_METADATA)}
        | {alternatives(PART_SURFACES)}\.\#(?:\.thinking\.\#)*\.{alternatives(PART_METADATA)}
        | tool_calls\.\#\.{alternatives(TOOL_METADATA)}
        | audio\.id
      )
    """,
    re.VERBOSE,
)


def strings(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(place, string) of every string that is not empty."""
    if isinstance(value, str) and value:
        yield path.removeprefix("."), value
    elif isinstance(value, dict):
        for key, below in value.items():
            yield from strings(below, f"{path}.{key}")
    elif isinstance(value, list):
        for below in value:
            yield from strings(below, f"{path}.#")


def numbered(value: object, numbers: Iterator[int]) -> Any:
    """The same, each string with a number of its own, so that it can be found again in what was read."""
    if isinstance(value, dict):
        return {key: numbered(below, numbers) for key, below in value.items()}
    if isinstance(value, list):
        return [numbered(below, numbers) for below in value]
    return f"<{next(numbers)}>" if isinstance(value, str) and value else value


def understood(frame: Frame, whole: bool) -> Reading:
    """What a frame says; those with an unclear index say nothing."""
    try:
        return read(frame, whole=whole)
    except IndexUnclearError:
        reject()


@given(NEARLY, st.booleans())
def test_no_string_is_missed(frame: Frame, whole: bool) -> None:
    """What is read holds every string of a frame but those in the tables of metadata."""
    frame = numbered(frame, count())
    reading = understood(frame, whole)
    read_texts = [text for part in reading.choices for _, _, text in part.texts]
    read_texts += [text for _, _, text in reading.loose]
    expected = sorted(text for place, text in strings(frame) if METADATA.fullmatch(place) is None)
    assert expected == sorted(set(re.findall("<[0-9]+>", "".join(read_texts))))
    assert [] == reading.opaque


@given(NEARLY, st.booleans())
def test_unknown_strings_stand_where_they_are_said_to(frame: Frame, whole: bool) -> None:
    """Every unknown text is one string of the frame, at the container and key beside it."""
    frame = numbered(frame, count())
    reading = understood(frame, whole)
    texts = [*reading.loose, *(text for part in reading.choices for text in part.texts)]
    unknown = [text for surface, _, text in texts if surface.startswith("?")]
    assert sorted(unknown) == sorted(container[key] for container, key in reading.unknown)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=4), below, max_size=4),
    max_leaves=20,
)


@given(NEARLY | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), ANY, max_size=5), st.booleans())
def test_whatever_comes_is_read(frame: Frame, whole: bool) -> None:
    """Any object is, but for one with an unclear index."""
    assert understood(frame, whole)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"choices": "x"}, id="no list"),
        pytest.param({"choices": ["x", {"finish_reason": "stop"}]}, id="no choice"),
        pytest.param(
            {"choices": [{"finish_reason": None}, {"finish_reason": ""}, {"finish_reason": "null"}]}, id="none"
        ),
        pytest.param(
            {"choices": [{"index": 3, "finish_reason": "stop"}, {"index": 1.0, "finish_reason": []}]}, id="two"
        ),
        pytest.param({"choices": [{"finish_reason": None}, {"finish_reason": "length"}]}, id="by position"),
    ],
)
def test_what_ends_is_the_same_without_reading_the_rest(frame: dict[str, object]) -> None:
    """As the whole reading of the frame has it."""
    assert [part.index for part in read(frame).choices if part.finished] == list(finished(frame))
    unclear = {"choices": [{"index": "1", "finish_reason": "stop"}]}
    with pytest.raises(IndexUnclearError):
        list(finished(unclear))
