"""The generations of a process: the one on which requests begin, and former ones that still have some under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import chain
from typing import Final

import msgspec

from relay.app import on_plugin_error
from relay.assembly import NotBuiltError, assemble
from relay.body import Body
from relay.chain import Chain
from relay.config import Config
from relay.events import Publisher
from relay.generation import Generation
from relay.log import Logger
from relay.metrics import Metrics
from relay.moderator import Moderator
from relay.options import ConfigError
from relay.plugin import Services
from relay.reply import Reply
from relay.section import Link
from relay.thread import aside
from relay.upstream import Upstreams

# So long the plugins of a generation may take to open.
OPEN_TIMEOUT_S: Final = 60.0


class Generations:
    """Made inside a running loop. `begin` first, `close` last; `current` is there in between."""

    def __init__(self, make_body: Callable[[Reply], Body], metrics: Metrics, log: Logger, events: Publisher) -> None:
        self._make_body = make_body
        self._metrics = metrics
        self._log = log
        self._events = events
        self._services: Services
        self._one_by_one = asyncio.Lock()
        self._former: dict[asyncio.Task[None], Generation] = {}  # by what waits for its end
        self.current: Generation
        # Set when a plugin of the current one has ended its lifespan by itself: nothing that it opened can be relied on.
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, config: Config) -> None:
        """Build the first one, which is still to be opened. Raises ConfigError."""
        self.current = self._made(config, assemble(config))
        self._known(self.current)

    async def open(self, services: Services) -> None:
        """Open the first one. Raises what a plugin raises, and ConfigError for one that is never open."""
        self._services = services
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S) as limit:
                await self.current.open(services)
        except Exception as error:
            opening = self.current.opening
            self._log.error("a plugin cannot be opened", plugin="" if opening is None else opening.name)
            if limit.expired():
                raise self.current.config.wrong(
                    [f"{_named(opening)} cannot be opened: it takes longer than {OPEN_TIMEOUT_S:g} s"]
                ) from error
            raise
        self._look_after(self.current)

    async def replace(self, config: Config) -> None:
        """Have requests begin on `config` from now on. Raises ConfigError, and then nothing has changed.

        What has been opened for all generations stays as it was, whatever `config` says (`takes_restart`).
        """
        async with self._one_by_one:
            await self._replace(config)

    async def _replace(self, config: Config) -> None:
        former = self.current
        config = _beside(former.config, config)
        new: Generation | None = None
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S) as limit:
                # Building may take its time, as of a long list of words, or never end; streams have their turns meanwhile.
                new = self._made(config, await aside("relay-build", _assembled, config), former)
                # Services of its own: by them a plugin knows which others are of its chain.
                await new.open(replace(self._services))
        except ConfigError:
            raise
        except Exception as error:
            cause = error.__cause__ if isinstance(error, NotBuiltError) else error
            why = f"it takes longer than {OPEN_TIMEOUT_S:g} s" if limit.expired() else type(cause).__name__
            what = f"{_named(new.opening)} cannot be opened" if new is not None else _unbuilt(error)
            self._log.error(what, exc_info=error)
            # Which line that is takes a while to find out in a long file.
            raise await asyncio.to_thread(config.wrong, [f"{what} ({why}); the log says more"]) from error
        self._known(new)
        self.current = new
        self._look_after(new)
        self._tell_ejected(new)
        former.retire()
        closing = asyncio.create_task(self._close(former))
        self._former[closing] = former
        closing.add_done_callback(self._former.pop)

    def modules(self) -> Mapping[str, str]:
        """Where the plugins of the current one are, by module, and their names; the first of several in one.

        Also the packages in which they are by themselves; and moderators, which are asked in tasks of their own, under the
        name of their plugin.
        """
        named: dict[str, str] = {}
        for link in reversed(self.current.chain.links):
            options = (getattr(link.plugin, option.name, None) for option in fields(link.plugin))
            several = (option for option in options if isinstance(option, tuple))
            named |= {type(each).__module__: link.name for each in chain(*several) if isinstance(each, Moderator)}
            named[type(link.plugin).__module__] = link.name
        return {**_packages(named), **named}

    def _look_after(self, generation: Generation) -> None:
        """Notice if it ends while it is served: a plugin's task group, for one, has given up."""

        def ended(life: asyncio.Task[None]) -> None:
            if not generation.over and not self.broken.done():
                error = None if life.cancelled() else life.exception()
                self.broken.set_exception(error or RuntimeError("a plugin has ended its lifespan"))
                self.broken.exception()  # whoever waits for it is told; it is no fault if nobody does

        assert generation.life is not None
        generation.life.add_done_callback(ended)

    def _tell_ejected(self, generation: Generation) -> None:
        """Say of its upstreams whether they are ejected now: of one that is not asked any more, no."""
        health = self.current.upstreams.health
        served = {upstream.name: upstream.base_url for upstream in self.current.config.upstreams}
        for upstream in generation.config.upstreams:
            place = f"{upstream.name} {served.get(upstream.name)}"
            self._metrics.upstream_stands(upstream.name, place in health and health[place].ejected)

    async def close(self) -> None:
        """All of them, after their last requests are settled. Raises what the closing of the current one raised."""
        for generation in (self.current, *self._former.values()):
            generation.abandon()
        try:
            await self._closed(self.current)
        finally:
            if self._former:
                await asyncio.wait(tuple(self._former))

    async def _closed(self, generation: Generation) -> None:
        if late := await generation.closed():
            self._log.error("a plugin does not close", plugin=late)

    async def _close(self, former: Generation) -> None:
        try:
            await self._closed(former)
        except Exception:  # noqa: BLE001 - logged whole; nobody is there any more whom it concerns
            self._log.exception("a former configuration did not close well")
        self._tell_ejected(former)

    def _made(self, config: Config, made: Chain, former: Generation | None = None) -> Generation:
        made.tell(on_plugin_error(self._log, self._metrics))
        before = former.upstreams if former is not None else None
        upstreams = Upstreams(config.upstreams, self._make_body, self._metrics, self._log, self._events, before=before)
        return Generation(config, made, upstreams)

    def _known(self, generation: Generation) -> None:
        upstreams = generation.config.upstreams
        self._metrics.know(
            (model for upstream in upstreams for model in upstream.model_map),
            (upstream.name for upstream in upstreams),
            (link.name for link in generation.chain.links),
        )


def _packages(named: Mapping[str, str]) -> dict[str, str]:
    """The packages in which modules of one plugin alone are: what it has made may be of another file there."""
    names: dict[str, set[str]] = {}
    for module, name in named.items():
        names.setdefault(module.rpartition(".")[0], set()).add(name)
    return {package: name for package, (name, *others) in names.items() if package and not others}


def _named(link: Link | None) -> str:
    """A plugin, as a message about it begins; it is known in which line it stands by its place."""
    if link is None:
        return "an upstream"
    return f"{link.place}: plugin {link.name!r}" if link.place else f"plugin {link.name!r}"


def _unbuilt(error: Exception) -> str:
    """What could not be built."""
    return f"{error} cannot be built" if isinstance(error, NotBuiltError) else "the chain cannot be built"


def _assembled(config: Config) -> Chain:
    """As `assemble`; also of a module that would end the process there is no more than an error."""
    try:
        return assemble(config)
    except SystemExit:
        raise ConfigError(f"{config.path}: a plugin ends the process while it is built") from None


def _beside(served: Config, config: Config) -> Config:
    """`config`, where it can take the place of one that is served."""
    server = msgspec.structs.replace(
        config.server, host=served.server.host, port=served.server.port, workers=served.server.workers
    )
    return msgspec.structs.replace(config, server=server, admin=served.admin, store=served.store)
