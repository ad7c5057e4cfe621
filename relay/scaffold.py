"""A first plugin in a package of its own, which passes its own tests: what `relay plugin new` writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import Template
from typing import Final

_NAME: Final = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")

# What the package imports, and the packages that the relay itself is: one of the same name would stand in their place.
_TAKEN: Final = frozenset({"exchange", "plugin", "plugins", "pytest", "reject", "reply", "sink", "text_sink"})

_FILES: Final[Mapping[str, str]] = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "relay-$dashed"
version = "0.1.0"
description = "$title: a plugin for moderelay."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["moderelay"]

[project.optional-dependencies]
dev = ["pytest", "pytest-aiohttp"]

# The name by which relay.toml says it: use = "$name"
[project.entry-points."relay.plugins"]
$name = "relay_$module:$title"

[tool.hatch.build.targets.wheel]
packages = ["relay_$module"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
pythonpath = ["."]
""",
    "relay_$module/__init__.py": '''\
"""$title, a plugin for moderelay."""

from relay import Exchange, Plugin, Reject, Reply, Sink
from relay.text import TextSink, begun

__all__ = ["$title"]


class $title(Plugin):
    """Puts one word in the place of another in every reply, and refuses requests of too many messages.

    word, by: what is replaced, and by what. max_messages: how many a request may have.
    """

    word: str
    by: str = ""
    max_messages: int = 100

    def __post_init__(self) -> None:
        if not self.word:
            raise ValueError("word is empty; give the word to be replaced")

    async def on_request(self, ex: Exchange) -> Reply | None:
        if len(ex.request.messages) > self.max_messages:
            raise Reject(f"Send at most {self.max_messages} messages.", code="too_many_messages")
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return TextSink(sink, self._replaced)

    def _replaced(self, text: str, last: bool) -> tuple[str, str]:
        """What may leave of a text, and what is held until more of it has come: the word may be cut."""
        *whole, rest = text.split(self.word)
        held = "" if last else begun(rest, self.word)
        return self.by.join([*whole, rest.removesuffix(held)]), held
''',
    "tests/test_$module.py": """\
import pytest
from relay.testing.run import run

from relay_$module import $title


@pytest.mark.parametrize("cuts", [(), None], ids=["whole", "byte by byte"])
async def test_a_word_is_replaced(cuts):
    ran = await run($title(word="cat", by="dog"), answer=["A c", "at."], cuts=cuts)
    assert ran.reply.text == "A dog."


async def test_of_a_reply_that_is_not_streamed():
    ran = await run($title(word="cat", by="dog"), answer=["A cat."], stream=False)
    assert ran.reply.text == "A dog."


async def test_too_many_messages():
    messages = [{"role": "user", "content": "Hi"}] * 2
    ran = await run($title(word="cat", max_messages=1), messages=messages)
    assert (ran.reply.status, ran.reply.json["error"]["code"]) == (400, "too_many_messages")
    assert ran.sent is None


async def test_the_contract(relay_contract):
    await relay_contract($title(word="cat", by="dog"), answer="A cat, two cats.")


def test_no_word():
    with pytest.raises(ValueError, match="word is empty"):
        $title(word="")
""",
    "README.md": """\
# relay-$dashed

A plugin for [moderelay](https://pypi.org/project/moderelay/): say what it does.

```toml
[[plugins]]
use = "$name"
word = "cat"
by = "dog"
```

`pip install -e ".[dev]"` and `pytest` try it, as does `relay plugin check $name -o word=cat`; `relay plugins $name` shows its options, `relay check` what would run.
""",
    ".gitignore": """\
__pycache__/
dist/
""",
}


def problem(name: str) -> str:
    """Why a plugin cannot have this name, in a sentence that says what to do; "" if it can."""
    if _NAME.fullmatch(name) and len(name) <= 40:
        if name.replace("-", "_") not in _TAKEN:
            return ""
        return f"{name!r} is what the relay calls something of its own; say what the plugin does, as in word_count"
    return f"{name!r} is no name for a plugin; write small letters, digits, - and _, as in word_count"


def scaffold(name: str) -> dict[str, str]:
    """The files of a package whose plugin has this name, by their paths."""
    words = re.split("[_-]", name)
    given = {
        "name": name,
        "dashed": "-".join(words),
        "module": "_".join(words),
        "title": "".join(word.capitalize() for word in words),
    }
    return {Template(path).substitute(given): Template(text).substitute(given) for path, text in _FILES.items()}
