"""`relay plugin check`: all that can be said of one plugin before it serves: is it found, is it built, does it fit, does it
keep its contract, what does it cost.

The fakes of `relay.testing` are imported when they are needed: nothing that serves knows them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from relay.assembly import Registries, registries
from relay.commands.attached import fail
from relay.config import Config, load
from relay.exchange import CALLER, Key
from relay.keys import API_KEY
from relay.options import ConfigError, build
from relay.plugin import Plugin, hook_problems
from relay.section import Link, hooks

if TYPE_CHECKING:
    from relay.testing.cost import Cost
    from relay.testing.reply import Lent

_STOOD_IN: Final[tuple[Key[Any], ...]] = (CALLER, API_KEY)
"""What the test kit gives in place of `auth`."""
_SHOWN: Final = 200


class _Wrong(Exception):
    """No more can be looked at. Its arguments are sentences."""


class _Told:
    """What is printed: a line for each thing that was looked at."""

    def __init__(self) -> None:
        self.well = True

    def good(self, what: str, *said: str) -> None:
        for line in said:
            click.echo(f"  ok     {what:9} {line}")

    def wrong(self, what: str, *said: str) -> None:
        self.well = False
        for sentence in said:
            for line in sentence.splitlines():
                click.echo(f"  WRONG  {what:9} {line}")


@click.command("check")
@click.argument("target")
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Take its options, and the plugins before it, from this file.",
)
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="As in relay.toml; repeat it.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="NAME:VALUE", help="Of the requests that it is tried with."
)
@click.option("--answer", help="The text of the replies that it is tried with: with something in it that it is for.")
def check(target: str, path: Path | None, options: Sequence[str], headers: Sequence[str], answer: str | None) -> None:
    """Say whether the plugin TARGET is sound: a registered name, or module:Class for one in this folder.

    It is opened and used as a relay would, so it asks whatever services it asks. Nothing is served.
    """
    if path is not None and options:
        fail("give --config or -o, not both", status=2)
    folder = Path.cwd() if path is None else path.absolute().parent
    sys.path += [place for place in (str(folder), os.getcwd()) if place not in sys.path]
    told = _Told()
    click.echo(target)
    try:
        config = None if path is None else load(path)
        _Check(told, target, folder, config).look(options, _pairs(headers, ":", "-H"), answer)
    except ConfigError as error:
        told.wrong("config", *error.problems)
    if not told.well:
        sys.exit(1)


def _pairs(words: Sequence[str], mark: str, option: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, found, value = word.partition(mark)
        if not (name.strip() and found):
            fail(f"{option} {word}: write it as NAME{mark}VALUE", status=2)
        pairs[name.strip()] = value.strip()
    return pairs


def _table(words: Sequence[str]) -> Mapping[str, object]:
    """`-o word=cat -o window.chars=20` as TOML reads it; what is none is a string."""
    lines = [f"{name} = {_value(text)}" for name, text in _pairs(words, "=", "-o").items()]
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"-o: {error}; write NAME=VALUE, with a VALUE as in relay.toml") from None


def _value(text: str) -> str:
    try:
        tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return json.dumps(text, ensure_ascii=False)
    return text


_Table = tuple[str, Mapping[str, object]]
"""Where a plugin stands in the configuration, and what is written there."""


class _Place(NamedTuple):
    """One of the places of a plugin. earlier: what stands before it."""

    where: str
    table: Mapping[str, object]
    earlier: Sequence[_Table]


class _Check:
    def __init__(self, told: _Told, target: str, folder: Path, config: Config | None) -> None:
        self._told = told
        self._target = target
        self._known = registries()
        self._config = config
        self._context = self._known.context(folder, os.environ)

    def look(self, options: Sequence[str], headers: Mapping[str, str], answer: str | None) -> None:
        """Say one thing after another, up to the first that makes all others pointless; of each place in the configuration."""
        what = "found"
        try:
            cls = self._found()
            what = "config"
            places = self._places(options)
        except _Wrong as wrong:
            self._told.wrong(what, *wrong.args)
            return
        except (ConfigError, SystemExit) as error:
            self._told.wrong(
                what,
                *(error.problems if isinstance(error, ConfigError) else ("it ends the process when it is imported",)),
            )
            return
        for place in places:
            if len(places) > 1:
                click.echo(f"  {place.where}")
            self._look_at(cls, place, headers, answer)

    def _look_at(self, cls: type[Plugin], place: _Place, headers: Mapping[str, str], answer: str | None) -> None:
        what = "options"
        try:
            make = self._built(cls, place)
            what = "hooks"
            self._hooks(make())
            what = "needs"
            before = self._before(make(), place.earlier)
            what = "at work"
            asyncio.run(self._try(make, before, headers, answer))
        except _Wrong as wrong:
            self._told.wrong(what, *wrong.args)
        except ConfigError as error:
            self._told.wrong(what, *error.problems)
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever the author has to mend
            self._told.wrong(what, f"{type(error).__name__}: {error} ({_place(error)})")

    def _places(self, options: Sequence[str]) -> list[_Place]:
        """Where it stands: by the options given, or everywhere in the configuration."""
        config = self._config
        if config is None:
            return [_Place(self._target, _table(options), ())]
        head = [(f"plugins[{at}]", table) for at, table in enumerate(config.plugins)]
        chains = [
            [*head, *((f"chains[{at}].plugins[{number}]", table) for number, table in enumerate(branch.plugins))]
            for at, branch in enumerate(config.chains)
        ]
        ways = [head, *chains]
        places = {
            where: _Place(where, table, tuple(way[:at]))
            for way in ways
            for at, (where, table) in enumerate(way)
            if table["use"] == self._target
        }
        if not places:
            used = ", ".join(dict.fromkeys(str(table["use"]) for way in ways for _, table in way)) or "none"
            raise _Wrong(f"{config.path} has no plugin with use = {self._target!r}; it has {used}")
        return list(places.values())

    def _found(self) -> type[Plugin]:
        try:
            cls = self._known.plugins.find(self._target)
        except ConfigError as error:
            if self._is_moderator():
                raise _Wrong(
                    f"{self._target!r} is a moderator; give it to the plugin moderation in a relay.toml, and check that: "
                    "relay plugin check moderation --config relay.toml"
                ) from None
            raise _Wrong(*error.problems) from None
        brought = [entry.distribution for entry in self._known.plugins.names() if entry.name == self._target]
        self._told.good("found", f"{inspect.getsourcefile(cls)} ({brought[0] if brought else 'by its module'})")
        return cls

    def _is_moderator(self) -> bool:
        try:
            self._known.moderators.find(self._target)
        except ConfigError:
            return False
        return True

    def _built(self, cls: type[Plugin], place: _Place) -> Callable[[], Plugin]:
        """What makes one."""

        def make() -> Plugin:
            return build(cls, place.table, place.where, context=self._context)

        try:
            shown = repr(make())
        except ConfigError as error:
            if self._config is not None:
                raise self._config.wrong(error.problems) from None
            raise _Wrong(*error.problems, "write each as -o NAME=VALUE, or --config relay.toml") from None
        self._told.good("options", shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…")
        return make

    def _hooks(self, plugin: Plugin) -> None:
        if problems := hook_problems(type(plugin)):
            raise _Wrong(*problems)
        link = Link(self._target, plugin)
        self._told.good("hooks", f"{', '.join(hooks(link)) or 'none'}; serves {', '.join(sorted(plugin.serves))}")

    def _before(self, plugin: Plugin, earlier: Sequence[_Table]) -> list[Plugin]:
        """The plugins that it has to meet a request after, each with those that it needs itself."""
        before: list[Plugin] = []
        named = []
        for key in plugin.needs:
            names = _givers(self._known, key)
            named.append(f"{key.name} (given by {', '.join(names) or 'nothing that is installed'})")
            if key not in _STOOD_IN and not any(key in each.gives for each in before):
                before += self._giver(key, names, earlier)
        given = ", ".join(key.name for key in (*plugin.gives, *plugin.tells))
        self._told.good("needs", f"{', '.join(named) or 'nothing'}; gives {given or 'nothing'}")
        return before

    def _giver(self, key: Key[Any], names: Sequence[str], earlier: Sequence[_Table]) -> list[Plugin]:
        if self._config is not None:
            for at, (where, table) in enumerate(earlier):
                cls = self._known.plugins.find(str(table["use"]))
                if key in cls.gives:
                    giver = build(cls, table, where, context=self._context)
                    return [*self._needed(giver, earlier[:at]), giver]
            raise _Wrong(f"it needs {key.name!r}, and no plugin before it in {self._config.path} gives that")
        for name in names:
            try:
                giver = build(self._known.plugins.find(name), {}, name, context=self._context)
            except ConfigError:
                continue
            return [*self._needed(giver, ()), giver]
        if names:
            raise _Wrong(f"it needs {key.name!r}; {names[0]}, which gives it, has options to be set: use --config")
        raise _Wrong(f"it needs {key.name!r}, and nothing that is installed gives that; install a plugin that does")

    def _needed(self, giver: Plugin, earlier: Sequence[_Table]) -> list[Plugin]:
        return [
            each
            for key in giver.needs
            if key not in _STOOD_IN
            for each in self._giver(key, _givers(self._known, key), earlier)
        ]

    # At work

    async def _try(
        self, make: Callable[[], Plugin], before: Sequence[Plugin], headers: Mapping[str, str], answer: str | None
    ) -> None:
        from relay.testing.reply import Lent  # noqa: PLC0415 - see the head
        from relay.testing.store import StoreOf, embedded_store  # noqa: PLC0415

        what = "opened"
        async with AsyncExitStack() as stack:
            data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                wanted = any(each.needs_store for each in (make(), *before))
                store = await stack.enter_async_context(embedded_store()) if wanted else None

                names = count()

                def lend() -> Lent:
                    own = StoreOf(store, str(next(names))) if store is not None else None
                    return Lent(self._context.folder, own, data=data)

                what = "contract"
                kept = await self._contract(make, before, headers, answer, lend)
                what = "cost"
                with nullcontext() if kept else suppress(TimeoutError):  # what hangs has been told
                    await self._cost(make, before, headers, lend)
            except ConfigError as error:
                self._told.wrong(what, *error.problems)
            except Exception as error:  # noqa: BLE001 - whatever the plugin's author has to mend
                self._told.wrong(what, f"{type(error).__name__}: {error} ({_place(error)})")

    async def _contract(
        self,
        make: Callable[[], Plugin],
        before: Sequence[Plugin],
        headers: Mapping[str, str],
        answer: str | None,
        lend: Callable[[], Lent],
    ) -> bool:
        from relay.testing.contract import contract  # noqa: PLC0415
        from relay.testing.replies import TEXT  # noqa: PLC0415

        with _silent():
            report = await contract(make, answer=answer or TEXT, headers=headers, before=before, lent=lend)
        if report.findings:
            remedy = "give requests a header by -H, or a --config with which it lets one through"
            self._told.wrong(
                "contract",
                *(
                    f"tried: it {each.seen}: {remedy}" if each.promise == "tried" else str(each)
                    for each in report.findings
                ),
            )
        else:
            self._told.good("contract", f"kept, in {report.conversations} conversations", *report.notes)
        return not report.findings

    async def _cost(
        self, make: Callable[[], Plugin], before: Sequence[Plugin], headers: Mapping[str, str], lend: Callable[[], Lent]
    ) -> None:
        from relay.testing.cost import Refused, cost  # noqa: PLC0415

        try:
            with _silent():
                request, chunk, stream = await cost(make, headers=headers, before=before, lend=lend)
        except Refused as refused:
            self._told.good("cost", f"not measured: it lets no such request through ({refused})")
            return
        self._told.good("cost", f"{_cost(request)} for a request")
        self._told.good("cost", f"{_cost(chunk)} for a chunk" if chunk else "0 µs for a chunk: it has no on_stream")
        self._told.good(
            "memory", f"{stream.own / 1024:.1f} KiB ({stream.without / 1024:.1f} KiB without it) for an open stream"
        )


@contextmanager
def _silent() -> Iterator[None]:
    """What the plugin prints would be printed a thousand times."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _cost(cost: Cost) -> str:
    return f"{cost.own:.1f} µs ({cost.without:.1f} µs in a chain without it, ×{cost.ratio:.1f})"


def _givers(known: Registries, key: Key[Any]) -> list[str]:
    """The installed plugins that give a key, by name."""

    def giving() -> Iterator[str]:
        for entry in known.plugins.names():
            try:
                if key in known.plugins.find(entry.name).gives:
                    yield entry.name
            except ConfigError:
                continue  # somebody else's, and broken: `relay plugins` says so

    return list(giving())


def _place(error: BaseException) -> str:
    """Where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "nowhere"
