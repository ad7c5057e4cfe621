"""The command `relay`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from relay import log
from relay.commands.audit import audit
from relay.commands.check import check
from relay.commands.keys import keys
from relay.commands.options import config_option
from relay.commands.plugin import plugin
from relay.commands.plugins import plugins
from relay.commands.quota import quota
from relay.commands.reload import reload
from relay.commands.tail import tail
from relay.config import load
from relay.options import ConfigError
from relay.serve import Reader, serve
from relay.starter import PROFILES, starter
from relay.uncaught import told_to
from relay.worker import work
from relay.workers import supervise

T = TypeVar("T")

log_option = click.option("--log-level", type=click.Choice(log.LEVELS), default="info", show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("moderelay"), prog_name="relay")
def main() -> None:
    """A streaming relay for chat completions that moderates what it streams."""


@main.command("serve")
@config_option
@log_option
@click.option("--watch", is_flag=True, help="Read the configuration again whenever its file changes.")
@click.option("--reader", type=click.Choice(["push", "await"]), default="push", hidden=True)
def serve_command(path: Path, log_level: str, watch: bool, reader: Reader) -> None:
    """Serve what the configuration describes."""

    async def serving() -> None:
        config = load(path)
        logger = log.configure(level=log_level)
        told_to(logger)
        if config.server.workers == 1:
            await serve(config, logger, reader=reader, watch=watch)
        else:
            await supervise(config, logger, log_level=log_level, reader=reader, watch=watch)

    _run(serving)


@main.command("worker", hidden=True)
@click.argument("line", type=int)
def worker_command(line: int) -> None:
    """Serve as a supervisor says, over the socket that is inherited as this descriptor."""
    sys.exit(_run(lambda: work(line)))


@main.command("init")
@click.option("--profile", type=click.Choice(tuple(PROFILES)), help="One that serves a public API as its page says.")
def init_command(profile: str | None) -> None:
    """Write a first relay.toml to standard output."""
    click.echo(starter(profile), nl=False)


@main.command("demo")
@click.option("--port", type=int, default=8080, show_default=True, help="0: any free one.")
@click.option("--admin-port", type=int, default=8081, show_default=True, help="0: any free one.")
@log_option
def demo_command(port: int, admin_port: int, log_level: str) -> None:
    """Run the whole relay with a built-in upstream; nothing else is needed."""
    from relay.demo import demo as run_demo  # noqa: PLC0415 - it brings the fakes of `relay.testing`

    _run(lambda: run_demo(port, admin_port, log.configure(sys.stderr.buffer, log_level)))


main.add_command(check)
main.add_command(keys)
main.add_command(quota)
main.add_command(audit)
main.add_command(tail)
main.add_command(reload)
main.add_command(plugins)
main.add_command(plugin)


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run on uvloop where there is one. A configuration that cannot be served ends with status 2."""
    try:
        import uvloop  # noqa: PLC0415 - there is none for every platform

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work())
    except ConfigError as error:
        _refuse(error)


def _refuse(error: ConfigError) -> NoReturn:
    click.echo(str(error), err=True)
    sys.exit(2)
