"""Which line a problem of relay.toml is about."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.toml_line import line_of, path_of

TEXT = '''\
# a relay
[server]
port = 8080
note = """
[[plugins]]
use = "no plugin"
"""

[[plugins]]
use = "auth"

# between
[[plugins]]
use = "moderation"
moderators = [
  { use = "lexicon", words = ["x"] },
  { use = "tencent" },
]
labels.Porn = { block = 80 }
labels."A b" = { block = 80 }

[[chains]]
name = "a"
[[chains.plugins]]
use = "one"
[[chains.plugins]]
use = "two"
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["server"], 2),
        (["server", "port"], 3),
        (["server", "note"], 4),
        (["plugins"], 9),
        (["plugins", 0], 9),
        (["plugins", 0, "use"], 10),
        (["plugins", 1], 13),
        (["plugins", 1, "moderators"], 15),
        (["plugins", 1, "moderators", 1, "use"], 15),
        (["plugins", 1, "labels"], 19),
        (["plugins", 1, "labels", "A b", "block"], 20),
        (["chains", 0, "plugins", 1], 26),
        (["chains", 0, "plugins", 1, "use"], 27),
        # What is not there stands where it would: in its table.
        (["plugins", 1, "words"], 13),
        (["plugins", 7], 9),
        (["upstreams"], 0),
        ([], 0),
    ],
)
def test_lines(path, line):
    assert line == line_of(TEXT, path)


@pytest.mark.parametrize(
    ("problem", "path"),
    [
        ("plugins[0] (auth): there are no keys", ["plugins", 0]),
        ("plugins[1].moderators[0] (lexicon): unknown option 'wrods'; did you mean 'words'?",
         ["plugins", 1, "moderators", 0, "wrods"]),
        ('plugins[1].labels."A b".block: Expected `int`', ["plugins", 1, "labels", "A b", "block"]),
        ("server.workers: several workers share what they count", ["server", "workers"]),
        ("the admin listener cannot open 127.0.0.1:80", ["the"]),
        ("", []),
    ],
)  # fmt: skip
def test_paths(problem, path):
    assert path == path_of(problem)


def test_no_toml():
    with pytest.raises(ValueError):
        line_of("a = ", ["a"])


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=1, max_size=12), st.data())
def test_every_line_is_found(statements, data):
    """Whatever stands between them, comments, empty lines and values of several lines: each is found where it was written."""
    text, written = "", []
    for number, (empty, comment, long) in enumerate(statements):
        text += "\n" * empty + ("# k0 = 1\n" if comment else "")
        written.append(text.count("\n") + 1)
        text += f"k{number} = " + ('[\n  1,\n  "k0 = ]",\n]\n' if long else "1\n")
    tomllib.loads(text)
    number = data.draw(st.integers(0, len(statements) - 1))
    assert written[number] == line_of(text, [f"k{number}"])


def test_other_ends_of_lines_are_none_of_toml():
    """Which str.splitlines knows of; a carriage return before the line's end is part of it."""
    assert 3 == line_of("# a\u2028b\x85\n[server]\nport = 1", ["server", "port"])
    assert 2 == line_of("a = 1\r\nb = 2\r\n", ["b"])


def test_what_is_too_much_to_read_has_no_line():
    """And costs no more than that: of a list of 20,000 lines the end is not looked for."""
    text = "a = [\n" + "  1,\n" * 20_000 + "]\nb = 1\n"
    assert line_of(text, ["b"]) in (0, 20_003)
