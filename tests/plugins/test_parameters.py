"""What a request leaves out is filled in, what is out of range is refused, and the rest goes on as it came."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import Reject
from relay.exchange import Exchange
from relay.metrics import REFUSALS
from relay.options import ConfigError, Context, build, describe
from relay.pure.request import ChatRequest
from relay.testing.reply import exchange
from relay_plugins.parameters import Parameters

DIGITS = "123456789012345678901234567890123456789012345678901234567890"
HEAD = '{"model":"gpt-4","messages":[{"role":"user","content":"Hi"}]'
PAGE = {"temperature": 0.2, "max_tokens": 2048, "top_p": 1.0, "n": 1}


def raw(fields: str) -> Exchange:
    """An exchange whose body ends with these fields, to the letter."""
    ex = exchange()
    body = f"{HEAD}{fields and ','}{fields}}}".encode()
    ex.loads(lambda: ChatRequest(body))
    return ex


async def sent_on(fields: str, **options: Any) -> str:
    """What stands after the messages in the body that goes on."""
    ex = raw(fields)
    assert await Parameters(**options).on_request(ex) is None
    sent = ex.request.encode().decode()
    assert sent.startswith(HEAD)
    return sent.removeprefix(HEAD).removeprefix(",").removesuffix("}")


async def refusal(fields: str, **options: Any) -> Reject:
    ex = raw(fields)
    before = ex.request.encode()
    with pytest.raises(Reject) as caught:
        await Parameters(**options).on_request(ex)
    assert before == ex.request.encode()
    return caught.value


# Defaults


async def test_the_defaults_of_the_page() -> None:
    """With no options a bare request gets the page's defaults; the penalties, which are 0 everywhere, are not named."""
    assert '"temperature":0.2,"max_tokens":2048,"top_p":1.0,"n":1' == await sent_on("")


async def test_null_is_not_given() -> None:
    """A default takes the place of a null; a null without a default stays."""
    nulls = ",".join(f'"{name}":null' for name in (*PAGE, "user", "logit_bias", "presence_penalty"))
    expected = {**PAGE, "user": None, "logit_bias": None, "presence_penalty": None}
    assert expected == json.loads("{" + await sent_on(nulls) + "}")


async def test_what_is_given_stays_to_the_letter() -> None:
    """Numbers keep their form, unknown fields their digits, and a body that says everything is not written again."""
    fields = (
        f'"temperature":1.50, "max_tokens":4096,"top_p":1E-1 ,"n":2,"presence_penalty":-2,"x":{DIGITS},'
        f'"frequency_penalty":2.0e0,"user":"\\u4f60","logit_bias":{{"50256":-100}},"y":{{"z":[{DIGITS}, 1e2]}}'
    )
    assert fields == await sent_on(fields)
    ex = raw(fields)
    before = ex.request.encode()
    await Parameters().on_request(ex)
    assert before is ex.request.encode()


async def test_unknown_fields_beside_defaults() -> None:
    """Their digits and escapes are the client's also where defaults are added."""
    fields = f'"x":{DIGITS},"seed":{DIGITS},"y":["\\u4f60\\/", 1.0e2]'
    assert (await sent_on(fields)).startswith(fields + ',"temperature":0.2,')


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ('"max_completion_tokens":100', {"max_completion_tokens": 100}),
        ('"max_completion_tokens":null', {"max_completion_tokens": None, "max_tokens": 2048}),
        ('"max_completion_tokens":100,"max_tokens":null', {"max_completion_tokens": 100, "max_tokens": None}),
        ('"max_completion_tokens":100,"max_tokens":7', {"max_completion_tokens": 100, "max_tokens": 7}),
    ],
)
async def test_the_newer_name_of_max_tokens(fields: str, expected: dict[str, object]) -> None:
    """No default stands beside it; servers refuse both."""
    others = {name: value for name, value in PAGE.items() if name != "max_tokens"}
    assert {**others, **expected} == json.loads("{" + await sent_on(fields) + "}")


@pytest.mark.parametrize(
    ("given", "expected"), [("[]", ""), ("{}", '"logit_bias":{}'), ('{"1":5,"2":-5}', '"logit_bias":{"1":5,"2":-5}')]
)
async def test_logit_bias(given: str, expected: str) -> None:
    """The page's empty array is dropped, OpenAI's object goes on."""
    assert expected == await sent_on(f'"logit_bias":{given}', **dict.fromkeys(PAGE, "off"))


# Ranges

GOOD = {
    "temperature": ["0", "2", "-0.0", "2.0", "1e0"],
    "max_tokens": ["1", "4096"],
    "max_completion_tokens": ["1", "4096"],
    "presence_penalty": ["-2", "2", "-2.0", "0", "1.5"],
    "frequency_penalty": ["-2", "2", "-2.0", "0", "1.5"],
    "top_p": ["0", "1", "1.0", "0.1", "5e-324"],
    "user": ['""', '"' + "你" * 64 + '"'],
}
NUMBERS = ["true", "false", '"1"', "[]", "[1]", "{}", '""', "1e308", "-1e308", DIGITS, "-" + DIGITS]
BAD = {
    "temperature": [*NUMBERS, "-0.01", "2.01", "3", "-1"],
    "max_tokens": [*NUMBERS, "0", "-1", "4097", "1.0", "100.5", "18446744073709551616"],
    "max_completion_tokens": [*NUMBERS, "0", "-1", "4097", "1.0"],
    "presence_penalty": [*NUMBERS, "-2.01", "3"],
    "frequency_penalty": [*NUMBERS, "2.01", "-3"],
    "top_p": [*NUMBERS, "-0.1", "1.01", "2"],
    "user": ["1", "true", "[]", '["ann"]', "{}", '"' + "你" * 65 + '"', DIGITS],
    "logit_bias": ["[1]", "[[50256,-100]]", "[{}]", '"50256"', "1", "true", "[null]"],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in GOOD.items() for value in values])
async def test_in_range(field: str, value: str) -> None:
    """Both ends of a range belong to it."""
    assert (await sent_on(f'"{field}":{value}')).startswith(f'"{field}":{value}')


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
async def test_out_of_range(field: str, value: str) -> None:
    """400, with a code and a parameter to find it by, and a message that says what it has to be; a boolean is no number."""
    error = await refusal(f'"{field}":{value}')
    assert (400, f"invalid_{field}", field) == (error.status, error.code, error.param)
    told = json.loads(error.body)["error"]
    assert ("invalid_request_error", field) == (told["type"], told["param"])
    assert told["message"].startswith(f"`{field}` has to be a")
    assert len(told["message"]) < 100
    assert error.code in REFUSALS


async def test_the_message_says_the_maximum() -> None:
    """A client that asked for too many tokens is told how many there are."""
    error = await refusal('"max_tokens":8000')
    assert "`max_tokens` has to be a whole number from 1 to 4096." == error.message
    assert "`temperature` has to be a number from 0 to 2." == (await refusal('"temperature":9')).message
    assert "`top_p` has to be a number from 0 to 1." == (await refusal('"top_p":2')).message
    assert "`user` has to be a string of at most 64 characters." == (await refusal('"user":7')).message


@pytest.mark.parametrize("number", ["1e400", "-1e400", "9" * 400, "NaN", "Infinity"])
async def test_numbers_no_reader_agrees_on(number: str) -> None:
    """They are refused where the body is read, as no JSON."""
    ex = exchange()
    body = f'{{"model":"gpt-4","messages":[{{}}],"temperature":{number}}}'.encode()
    ex.loads(lambda: ChatRequest(body))
    with pytest.raises(ValueError, match="not valid JSON"):
        await Parameters().on_request(ex)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=5,
)
NAMES = [*PAGE, "max_completion_tokens", "presence_penalty", "frequency_penalty", "user", "logit_bias", "x", "tools"]


@given(st.dictionaries(st.sampled_from([name for name in NAMES if name != "n"]), anything))
async def test_whatever_comes(fields: dict[str, Any]) -> None:
    """It is refused with an error of ours, or goes on with every value that was given, and in range."""
    ex = raw(json.dumps(fields)[1:-1])
    try:
        await Parameters().on_request(ex)
    except Reject as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert (400, f"invalid_{error.param}") == (error.status, error.code)
        assert error.param in fields
        return
    sent = json.loads(ex.request.encode())
    for name, value in fields.items():
        if value is not None and not (name == "logit_bias" and value == []):
            assert value == sent[name]
    assert 0 <= sent["temperature"] <= 2
    assert 1 <= (sent.get("max_completion_tokens") or sent["max_tokens"]) <= 4096
    assert 0 <= sent["top_p"] <= 1


@given(st.dictionaries(st.text(min_size=1), st.integers(-(10**60), 10**60) | st.text(), max_size=5))
async def test_unknown_fields_go_on_exactly(fields: dict[str, Any]) -> None:
    """Whatever a field is called that this plugin does not know, it is not touched."""
    known = {*NAMES, "model", "messages", "stream"}
    fields = {name: value for name, value in fields.items() if name not in known}
    ex = raw(json.dumps(fields)[1:-1])
    await Parameters().on_request(ex)
    sent = json.loads(ex.request.encode())
    assert fields == {name: sent[name] for name in fields}
    assert {*fields, *PAGE, "model", "messages"} == set(sent)


# The configuration


async def test_other_defaults() -> None:
    """Each default can be another, or be left to the upstream; so can those that the page does not fill in."""
    assert "" == await sent_on("", **dict.fromkeys(PAGE, "off"))
    expected = '"temperature":1.5,"max_tokens":10,"presence_penalty":-1.0,"frequency_penalty":0,"top_p":0.5,"n":3'
    given = {
        "temperature": 1.5,
        "max_tokens": 10,
        "presence_penalty": -1.0,
        "frequency_penalty": 0,
        "top_p": 0.5,
        "n": 3,
    }
    assert expected == await sent_on("", **given)


@pytest.mark.parametrize(
    ("options", "good", "bad", "says"),
    [
        ({"max_tokens_limit": 8192}, '"max_tokens":8192', '"max_tokens":8193', "1 to 8192"),
        ({"max_tokens_limit": 8192}, '"max_completion_tokens":8192', '"max_completion_tokens":8193', "1 to 8192"),
        ({"temperature_range": (0, 1)}, '"temperature":1', '"temperature":1.1', "0 to 1"),
        ({"penalty_range": (0, 0.5)}, '"presence_penalty":0.5', '"presence_penalty":-0.1', "0 to 0.5"),
        ({"penalty_range": (0, 0.5)}, '"frequency_penalty":0', '"frequency_penalty":0.6', "0 to 0.5"),
        ({"user_chars": 3}, '"user":"ann"', '"user":"anne"', "at most 3 characters"),
    ],
)
async def test_other_ranges(options: dict[str, Any], good: str, bad: str, says: str) -> None:
    """Each range can be another one, and the message says which."""
    assert (await sent_on(good, **options)).startswith(good)
    assert says in (await refusal(bad, **options)).message


def configured(**table: object) -> Parameters:
    return build(Parameters, table, "plugins[1]", context=Context(folder=Path(), environ={}))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (
            {"temperature": 3},
            "temperature = 3.0 would be refused if a client sent it: it has to be a number from 0 to 2",
        ),
        ({"temperature": 1.5, "temperature_range": [0, 1]}, "it has to be a number from 0 to 1"),
        ({"max_tokens_limit": 1000}, "max_tokens = 2048 would be refused .* from 1 to 1000"),
        ({"max_tokens": 5000}, "max_tokens = 5000 would be refused .* from 1 to 4096"),
        ({"presence_penalty": 3}, "presence_penalty = 3.0 would be refused"),
        ({"frequency_penalty": -3}, "frequency_penalty = -3.0 would be refused"),
        ({"top_p": -1}, "top_p = -1.0 would be refused .* a number from 0 to 1"),
        ({"temperature": float("nan")}, "temperature = nan would be refused"),
        ({"temperature_range": [2, 0]}, r"temperature_range = \[2.0, 0.0\] is empty; write the lower number first"),
        ({"penalty_range": [float("nan"), 0]}, "penalty_range = .* is empty"),
        ({"penalty_range": [0]}, "plugins.1..penalty_range: Expected `array` of length 2"),
        ({"n": 0}, "plugins.1..n: "),
        ({"n": 129}, "plugins.1..n: "),
        ({"max_tokens": 0}, "plugins.1..max_tokens: "),
        ({"max_tokens": True}, "plugins.1..max_tokens: "),
        ({"temperature": "of"}, "plugins.1..temperature: "),
        ({"user_chars": 0}, "plugins.1..user_chars: "),
        ({"temprature": 1}, "unknown option 'temprature'; did you mean 'temperature'"),
    ],
)
def test_a_configuration_that_cannot_be_meant(table: dict[str, object], problem: str) -> None:
    """A default outside its own range stops the start, as do empty ranges and wrong types."""
    with pytest.raises(ConfigError, match=problem):
        configured(**table)


async def test_from_a_file() -> None:
    """Whole numbers of TOML serve where a fraction is expected, and "off" is a word."""
    plugin = configured(temperature=1, max_tokens="off", temperature_range=[0, 1])
    ex = raw("")
    await plugin.on_request(ex)
    assert ("1.0", False) == (str(ex.request.get("temperature")), "max_tokens" in json.loads(ex.request.encode()))


def test_the_options_in_words() -> None:
    """`describe` shows them with their defaults."""
    shown = {option.name: (option.type, option.default) for option in describe(Parameters)}
    assert ('float | "off"', "0.2") == shown["temperature"]
    assert ('int ≥ 1 ≤ 128 | "off"', "1") == shown["n"]
    assert ("int ≥ 1", "4096") == shown["max_tokens_limit"]
    assert "[0.0, 2.0]" == shown["temperature_range"][1]
