"""`relay tail`: what happens in a relay that runs, as it happens."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any, Final

import click
import orjson

from relay.commands.attached import fail
from relay.commands.following import Heard, Refused, follow
from relay.commands.options import config_option
from relay.commands.running import addressed, url_option
from relay.events import FILTERS, KINDS

_PLAIN: Final = re.compile(r"[^\s\"'=]+")
_WIDTH: Final = max(map(len, KINDS))
_INTERRUPTED: Final = 130


@click.command("tail")
@click.option("--kind", "named", multiple=True, type=click.Choice(tuple(KINDS)), help="Only this; may be repeated.")
@click.option("--model", help="Only events with this model.")
@click.option("--upstream", help="Only events with this upstream.")
@click.option("--caller", help="Only events with this caller, the name of a key.")
@click.option("--moderator", help="Only events with this moderator.")
@click.option(
    "--last", type=click.IntRange(0, 10_000), default=10, show_default=True, help="Begin with so many before."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@url_option
@config_option
def tail(named: tuple[str, ...], last: int, as_json: bool, url: str | None, path: Path, **filters: str | None) -> None:
    """Follow what happens in a relay: cuts, refusals, ejections, reloads and more.

    Goes on when the relay is restarted, until it is interrupted.
    """
    query = {name: value for name in FILTERS if (value := filters[name]) is not None}
    if named:
        query["kind"] = ",".join(dict.fromkeys(named))
    if last:
        query["last"] = str(last)
    where, token = addressed(path, url)
    try:
        asyncio.run(_follow(where, token, query, as_json))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:  # as of `relay tail | head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Refused as refused:
        fail(str(refused))


async def _follow(url: str, token: str, query: Mapping[str, str], as_json: bool) -> None:
    since = monotonic()
    heard_of = False

    def on_away(reason: str) -> None:
        nonlocal since
        since = monotonic()
        what = "is away" if heard_of else "does not answer"
        click.echo(f"relay tail: the relay at {url} {what} ({reason}); waiting for it", err=True)

    def on_back() -> None:
        click.echo(f"relay tail: the relay is there, after {monotonic() - since:.1f} s", err=True)

    async for event in follow(url, token, query, on_away=on_away, on_back=on_back):
        heard_of = True
        click.echo(_as_json(event) if as_json else line(event))


def _as_json(event: Heard) -> str:
    return orjson.dumps({"id": event.id, "kind": event.kind, **event.data}).decode()


def line(event: Heard) -> str:
    """An event in one line: when, what, and its fields by name."""
    at = event.data.get("at", "-")
    meaning = KINDS.get(event.kind)  # type: ignore[call-overload]  # one of another version of the relay has none
    known = [name for name in meaning.fields if name in event.data] if meaning is not None else []
    fields = [*known, *(name for name in event.data if name not in known)]
    said = "  ".join(f"{name}={_value(event.data[name])}" for name in fields if name != "at")
    return f"{_value(at)}  {_value(event.kind).ljust(_WIDTH)}  {said}".rstrip()


def _value(value: Any) -> str:
    """In quotes where it would not be one word, and with nothing in it that a terminal obeys: clients name models."""
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    if _PLAIN.fullmatch(text) and text.isprintable():
        return text
    quoted = orjson.dumps(text).decode()
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in quoted)
