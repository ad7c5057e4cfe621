"""What nobody caught becomes a line of the log that says where it was, and none of its words."""

import io
import json
import logging
import subprocess
import sys

import pytest

from relay import uncaught
from relay.log import configure

CANARY = "sk-canary-0123456789"
BEFORE = """
import logging, threading
from relay.log import configure
from relay.uncaught import told_to
told_to(configure())
canary = "sk-" + "canary-0123456789"
def fails(): raise ValueError(canary)
"""


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("fails()", 1, {"what": "the process ends", "exception": "builtins.ValueError"}),
        ("thread = threading.Thread(target=fails); thread.start(); thread.join()", 0, {"what": "a thread ends"}),
        ("class Held:\n    def __del__(self): fails()\nHeld()", 0, {"what": "nobody to be told"}),
        ("logging.getLogger('some.library').warning('cannot do with %s', canary)", 0, {"logger": "some.library"}),
        ("logging.getLogger('some').error(f'cannot do with {canary}')", 0, {"logger": "some", "level": "error"}),
        (
            "try: fails()\nexcept ValueError: logging.exception(canary)",
            0,
            {"logger": "root", "exception": "builtins.ValueError"},
        ),
        ("logging.getLogger('some').info(canary)", 0, None),
        ("raise SystemExit(3)", 3, None),
    ],
)
def test_what_nobody_caught(source, status, said):
    """Python's own words, and a library's, would have quoted the canary."""
    done = subprocess.run([sys.executable, "-c", BEFORE + source], capture_output=True, text=True, check=False)
    assert (status, "") == (done.returncode, done.stderr)
    assert CANARY not in done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [said] * bool(said) == [{name: line[name] for name in said} for line in lines]


def test_a_library_is_heard_once_a_minute(monkeypatch):
    """What is said in one place is told once, and how often it was not when it is told again."""
    clock = [0.0]
    monkeypatch.setattr(uncaught, "monotonic", lambda: clock[0])
    out = io.BytesIO()
    handler = uncaught._Handler(configure(out))
    library = logging.Logger("some.library")
    library.addHandler(handler)
    for clock[0] in (0.0, 1.0, 59.0, 60.0):
        library.warning("cannot do with %s", CANARY)
        library.warning("nor with %s", CANARY)
    assert [0, 0, 2, 2] == [json.loads(line)["unsaid"] for line in out.getvalue().splitlines()]


def test_another_exception_in_the_same_place_is_news():
    out = io.BytesIO()
    library = logging.Logger("some.library")
    library.addHandler(uncaught._Handler(configure(out)))
    for error in (ValueError(), OSError(), OSError()):
        library.error("cannot", exc_info=error)
    assert ["builtins.ValueError", "builtins.OSError"] == [
        json.loads(line)["exception"] for line in out.getvalue().splitlines()
    ]
