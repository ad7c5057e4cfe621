"""`python -m relay_plugins.tencent.fake`: the fake on its own, until a signal comes."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from relay_plugins.tencent.fake.server import SECRET_ID, SECRET_KEY, Fake
from relay_plugins.tencent.fake.settings import Settings, Word

GREETING = """\
A fake of Tencent Cloud's text moderation on {endpoint}

To try the relay with it, put this into relay.toml, under a [[plugins]] with use = "moderation":

moderators = [{{ use = "tencent", endpoint = "{endpoint}", secret_id = "{secret_id}", secret_key = "{secret_key}"{token} }}]

To switch it while it runs:

curl {endpoint}/control
curl {endpoint}/control -d '{{"outage": "black_hole"}}'

It finds: {words}
"""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m relay_plugins.tencent.fake",
        description="A fake of Tencent Cloud's text moderation (TextModeration, 2020-12-29).",
        epilog=Settings.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=9520, help="0 for any (default: 9520)")
    options.add_argument("--secret-id", default=SECRET_ID)
    options.add_argument("--secret-key", default=SECRET_KEY)
    options.add_argument("--token", default="", help="of temporary credentials")
    options.add_argument(
        "--word",
        action="append",
        default=[],
        metavar="WORD[:LABEL[:SUGGESTION[:SCORE[:SUB_LABEL]]]]",
        help="a word to find; may be given again (default label Abuse, suggestion Block, score 100)",
    )
    options.add_argument("--word-file", type=Path, metavar="FILE", help="more of them, one a line, UTF-8")
    for field in msgspec.structs.fields(Settings):
        if field.name != "words":
            options.add_argument(
                "--" + field.name.replace("_", "-"),
                dest=f"setting:{field.name}",
                metavar="VALUE",
                help="see below; lists and tables as JSON",
            )
    return options


def settings(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings of a command line. Raises OSError, UnicodeError or msgspec.ValidationError."""
    lines = arguments.word_file.read_text(encoding="utf-8").splitlines() if arguments.word_file else []
    words = [word(line) for line in (*arguments.word, *lines) if line.strip() and not line.startswith("#")]
    given = {
        name.removeprefix("setting:"): value
        for name, value in vars(arguments).items()
        if name.startswith("setting:") and value is not None
    }
    return {"words": words, **{name: _value(text) for name, text in given.items()}}


def word(line: str) -> dict[str, Any]:
    """`WORD:LABEL:SUGGESTION:SCORE:SUB_LABEL`, of which all but the first may be missing."""
    fields = (field.name for field in msgspec.structs.fields(Word))
    found: dict[str, Any] = {name: part for name, part in zip(fields, line.strip().split(":"), strict=False) if part}
    return msgspec.to_builtins(msgspec.convert(found, Word, strict=False))  # type: ignore[no-any-return]


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


async def run(fake: Fake) -> None:
    """Serve until a signal comes."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with fake:
        account = fake.account
        print(
            GREETING.format(
                endpoint=fake.endpoint,
                secret_id=account.secret_id,
                secret_key=account.secret_key,
                token=f', token = "{account.token}"' if account.token else "",
                words=", ".join(entry.word for entry in fake.settings.words) or "nothing; give it --word",
            ),
            flush=True,
        )
        await stopped.wait()


def main() -> None:
    options = parser()
    arguments = options.parse_args()
    try:
        fake = Fake(
            host=arguments.host,
            port=arguments.port,
            secret_id=arguments.secret_id,
            secret_key=arguments.secret_key,
            token=arguments.token,
            **settings(arguments),
        )
    except (OSError, UnicodeError, msgspec.ValidationError) as error:
        options.error(str(error))
    try:
        asyncio.run(run(fake))
    except OSError as error:
        sys.exit(f"{arguments.host}:{arguments.port}: {error.strerror}; choose another with --port")


if __name__ == "__main__":
    main()
