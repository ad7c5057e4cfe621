import copy
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.secret import Secret

VALUE = "sk-open-sesame"


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(repr, id="repr"),
        pytest.param(str, id="str"),
        pytest.param(lambda secret: f"{secret}", id="format"),
        pytest.param(lambda secret: f"{secret!r:>40}", id="padded format"),
        pytest.param(lambda secret: "%s %r" % (secret, secret), id="percent"),  # noqa: UP031
        pytest.param(lambda secret: pprint.pformat({"key": [secret]}), id="pprint"),
        pytest.param(lambda secret: json.dumps(secret, default=str), id="json with default=str"),
        pytest.param(
            lambda secret: logging.LogRecord("n", 20, "p", 1, "key %s", (secret,), None).getMessage(), id="logging"
        ),
    ],
)
def test_shown(show: Callable[[Secret], str]) -> None:
    """What is written of a secret says that it is one, and not what."""
    shown = show(Secret(VALUE))
    assert "Secret(…)" in shown or r"Secret(\u2026)" in shown
    assert VALUE not in shown


def test_reveal() -> None:
    """reveal() is the value."""
    assert Secret(VALUE).reveal() == VALUE


@pytest.mark.parametrize(
    "dump", [*(lambda s, p=p: pickle.dumps(s, p) for p in range(6)), copy.copy, copy.deepcopy, json.dumps]
)
def test_dumped(dump: Callable[[Secret], object]) -> None:
    """A secret cannot be pickled, copied or made into JSON."""
    with pytest.raises(TypeError):
        dump(Secret(VALUE))


def test_no_dict() -> None:
    """A secret has no __dict__ that a debugger or a serialiser would dump."""
    with pytest.raises(TypeError):
        vars(Secret(VALUE))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"k", "k"),
        (b"k\n", "k"),
        (b"k\r\n", "k"),
        (b"k\n\n", "k\n"),
        (b" k \n", " k "),
        ("密钥\n".encode(), "密钥"),
    ],
)
def test_file(tmp_path: Path, content: bytes, value: str) -> None:
    """A secret from a file is its text without one newline at the end."""
    (tmp_path / "key").write_bytes(content)
    assert value == Secret.read({"file": "key"}, tmp_path, {}).reveal()


def test_absolute_file(tmp_path: Path) -> None:
    """An absolute path does not start at the configuration's folder."""
    (tmp_path / "key").write_text("k")
    assert Secret.read({"file": str(tmp_path / "key")}, Path("/nowhere"), {}).reveal() == "k"


def test_in_place_and_environment() -> None:
    """A secret stands in place or in the environment."""
    assert Secret.read(VALUE, Path(), {}).reveal() == VALUE
    assert Secret.read({"env": "KEY"}, Path(), {"KEY": VALUE}).reveal() == VALUE


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"env": "KEY"}, "environment variable KEY is not set; set it, or give"),
        ({"env": "EMPTY"}, "environment variable EMPTY is empty; set it, or leave the option out"),
        ({"file": "absent"}, r"file /conf/absent cannot be read \(No such file or directory\); make it readable"),
        ({"file": "."}, "file /conf cannot be read"),
        ("", "the value is empty"),
        ({"env": 3}, "a secret is a string"),
        ({"env": "A", "file": "b"}, "a secret is a string"),
        ({}, "a secret is a string"),
        (["x"], "a secret is a string"),
        (None, "a secret is a string"),
    ],
)
def test_refused(source: object, message: str) -> None:
    """What is no secret is refused with the remedy."""
    with pytest.raises(ValueError, match=message):
        Secret.read(source, Path("/conf"), {"EMPTY": ""})


@pytest.mark.parametrize("source", [41414141, [VALUE], {"evn": VALUE}, {VALUE: "x"}, {"env": "A", "b": VALUE}])
def test_wrong_type_is_not_shown(source: object) -> None:
    """A value of the wrong type is not repeated in the error: it may be the secret."""
    with pytest.raises(ValueError) as caught:
        Secret.read(source, Path(), {})
    assert VALUE not in str(caught.value)
    assert "4141" not in str(caught.value)


def test_bytes_are_not_shown(tmp_path: Path) -> None:
    """A file that is not UTF-8 is named, and the bytes it holds are in no traceback."""
    (tmp_path / "key").write_bytes(VALUE.encode() + b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text") as caught:
        Secret.read({"file": "key"}, tmp_path, {})
    assert VALUE not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
