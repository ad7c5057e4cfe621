import copy
import json
import logging
import os
import pickle
import pprint
import threading
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


# Files that change


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on by so many seconds."""
    now = 1000.0
    monkeypatch.setattr("relay.secret.monotonic", lambda: now)

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    return pass_by


def test_changed_file(tmp_path: Path, later: Callable[[float], None]) -> None:
    """A new value is seen after a second, not before; in place or by a file that takes the place."""
    (tmp_path / "key").write_text("old\n")
    secret = Secret.read({"file": "key"}, tmp_path, {})
    (tmp_path / "key").write_text("newer\n")
    later(0.9)
    assert "old" == secret.reveal()
    later(0.2)
    assert "newer" == secret.reveal()
    (tmp_path / "next").write_text("third\n")
    (tmp_path / "next").replace(tmp_path / "key")
    later(1)
    assert "third" == secret.reveal()


def test_changed_link(tmp_path: Path, later: Callable[[float], None]) -> None:
    """A link that is pointed elsewhere is a change, as Kubernetes changes its secrets."""
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    (tmp_path / "key").symlink_to("a")
    secret = Secret.read({"file": "key"}, tmp_path, {})
    (tmp_path / "new").symlink_to("b")
    (tmp_path / "new").replace(tmp_path / "key")
    later(1)
    assert "two" == secret.reveal()


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 65_537])
def test_bad_change(tmp_path: Path, later: Callable[[float], None], content: bytes) -> None:
    """While the file holds nothing good, the last good value stands."""
    path = tmp_path / "key"
    path.write_bytes(b"good")
    secret = Secret.read({"file": "key"}, tmp_path, {})
    path.write_bytes(content)
    later(1)
    assert "good" == secret.reveal()
    path.unlink()
    later(1)
    assert "good" == secret.reveal()
    path.mkdir()
    later(1)
    assert "good" == secret.reveal()
    path.rmdir()
    path.write_bytes(b"better")
    later(1)
    assert "better" == secret.reveal()


def test_read_once(tmp_path: Path, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is looked at once a second however often the value is asked for, and read only when it has changed."""
    (tmp_path / "key").write_text("k")
    secret = Secret.read({"file": "key"}, tmp_path, {})
    looked, stat = 0, os.stat

    def counted(path: Path) -> os.stat_result:
        nonlocal looked
        looked += 1
        return stat(path)

    monkeypatch.setattr("relay.secret.os.stat", counted)
    monkeypatch.delattr("relay.secret._content")
    for _ in range(100):
        later(0.05)
        secret.reveal()
    assert 4 <= looked <= 5


def test_pipe(tmp_path: Path, later: Callable[[float], None]) -> None:
    """A pipe is read once, and never waited for again."""
    os.mkfifo(tmp_path / "key")
    writer = threading.Thread(target=(tmp_path / "key").write_text, args=("piped",))
    writer.start()
    secret = Secret.read({"file": "key"}, tmp_path, {})
    writer.join()
    later(10)
    assert "piped" == secret.reveal()


def test_large_file(tmp_path: Path) -> None:
    """What is larger than any key is taken for another file."""
    (tmp_path / "key").write_bytes(b"x" * 65_537)
    with pytest.raises(ValueError, match="longer than 65536 bytes"):
        Secret.read({"file": "key"}, tmp_path, {})


async def test_changed_on_the_loop(tmp_path: Path, later: Callable[[float], None]) -> None:
    """`reveal` may be called where nothing may block."""
    (tmp_path / "key").write_text("a")
    secret = Secret.read({"file": "key"}, tmp_path, {})
    (tmp_path / "key").write_text("bc")
    later(1)
    assert "bc" == secret.reveal()
