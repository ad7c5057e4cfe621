"""What can be given to several commands: the configuration, the form of what is printed, times and limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

config_option = click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("relay.toml"),
    show_default=True,
    help="The configuration.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the admin API answers it.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN: Final = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)

NEVER: Final = "never"
DEFAULT: Final = "default"


class Span(click.ParamType[int]):
    """A length of time, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if str(value) == "0":
            return 0
        if found := _SPAN.fullmatch(str(value)):
            return int(found[1]) * _UNITS[found[2]]
        return self.fail("write a number and its unit, as in 90s, 15m, 12h, 30d or 2w; or 0", param, ctx)


class When(click.ParamType[Any]):
    """A point in time; `never` where that is allowed."""

    name = "when"

    def __init__(self, *, never: bool = False) -> None:
        self._never = never

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if self._never and text == NEVER:
            return None
        try:
            if found := _SPAN.fullmatch(text):
                return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=int(found[1]) * _UNITS[found[2]])
            at = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            self.fail(
                "write how long from now, as in 12h or 30d, or a date, as in 2030-12-31 or 2030-12-31T18:00:00+08:00"
                + (", or never" if self._never else ""),
                param,
                ctx,
            )
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at


class Number(click.ParamType[Any]):
    """A limit; `default` for None where that is allowed."""

    name = "number"

    def __init__(self, *, default: bool = False) -> None:
        self._default = default

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = str(value)
        if self._default and text == DEFAULT:
            return None
        if re.fullmatch(r"[0-9]{1,16}", text, re.ASCII) and 1 <= int(text) < 2**53:
            return int(text)
        return self.fail("write a whole number from 1 on" + (f", or {DEFAULT}" if self._default else ""), param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """A label with its value."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, equals, text = str(value).partition("=")
        if not (name and equals and text):
            self.fail("write a label as NAME=VALUE", param, ctx)
        return name, text
