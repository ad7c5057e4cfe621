"""A command at work on the store that relay.toml names, whether a relay runs on it or not."""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from relay.administration import Administration, store_trouble
from relay.assembly import assemble
from relay.chain import Chain
from relay.config import Config, load, parse, text_of
from relay.errors import RelayError
from relay.log import configure
from relay.options import ConfigError
from relay.store.opening import borrowed
from relay.store.port import StoreError

T = TypeVar("T")


def run(path: Path, work: Callable[[Administration], Coroutine[Any, Any, T]]) -> T:
    """What `work` returns. What goes wrong is said in a sentence: status 2 for the configuration, 1 for all else."""

    async def on_store() -> T:
        config, chain = described(path)
        log = configure(sys.stderr.buffer, "error")
        data = config.store.data(config.folder)
        async with borrowed(config.store, folder=config.folder, data=data, log=log) as store:
            if store is None:
                raise ConfigError(
                    f'{path}: store.url is "memory:", where keys, balances and the audit log cannot be kept; '
                    'write "embedded:" for a store on this machine, or the redis:// of one that several share'
                )
            return await work(Administration.of(store, (link.plugin for link in chain.links)))

    try:
        return asyncio.run(on_store())
    except ConfigError as error:
        fail(str(error), status=2)
    except StoreError as error:
        fail(store_trouble(error).message)
    except RelayError as error:
        fail(error.message)


def described(path: Path) -> tuple[Config, Chain]:
    """What relay.toml says of the store and of what keeps something there. Raises ConfigError.

    The relay's other secrets, an upstream's key for one, need not be in the variables of an operator's shell.
    """
    try:
        config = load(path)
        return config, assemble(config)
    except ConfigError as error:
        partly = PartlySet()
        try:
            config = parse(text_of(path), path, partly)
            return config, assemble(config, environ=partly)
        except ConfigError:
            raise error from None


class PartlySet(Mapping[str, str]):
    """The environment, with a value of its own for every variable that is not set. made_up: those values, and whose they are."""

    def __init__(self) -> None:
        self.made_up: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if value := os.environ.get(name):
            return value
        self.made_up["unset" + name] = name
        return "unset" + name

    def __iter__(self) -> Iterator[str]:
        return iter(os.environ)

    def __len__(self) -> int:
        return len(os.environ)


def fail(message: str, status: int = 1) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(status)


def who() -> str:
    """For the audit log: the user of this machine who runs the command."""
    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


def checked(kind: type[T], **fields: object) -> T:
    """A `kind` with these fields, or a sentence about what is wrong with them, and status 1."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        fail(f"{error}.")


def print_json(view: msgspec.Struct) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(view), indent=2))
