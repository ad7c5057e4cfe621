"""relay.toml, typed: every table, field, default and range, and the reading of the file.

A configuration is refused as a whole, with every problem found, before anything is opened. What a plugin's table may
hold is the plugin's own affair (`relay.options`): here it is a raw table that names its plugin with `use`.

Nothing here looks outside the file, the files and variables its secrets name, and RELAY_ADMIN_TOKEN.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from relay.match import Match
from relay.options import ConfigError, Context, Table, nearest, read
from relay.pure.toml_line import line_of, path_of
from relay.secret import Secret
from relay.store.address import SCHEMES, Address
from relay.store.address import parse as parse_address

__all__ = [
    "Admin",
    "Branch",
    "Config",
    "ConfigError",
    "Server",
    "Store",
    "Upstream",
    "load",
    "parse",
    "takes_restart",
    "text_of",
]

Name: TypeAlias = Annotated[str, Meta(min_length=1)]
Host: TypeAlias = Annotated[str, Meta(min_length=1)]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]  # 0: any free one
Count: TypeAlias = Annotated[int, Meta(ge=1)]
# A day is longer than any wait here, and keeps out `inf`, which the event loop's clock cannot hold.
Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=86400)]
# Failures after which the next upstream may be asked: nothing was sent to the client, and the first three cannot have
# made the upstream act. The others can, so they are the operator's choice.
RetryOn: TypeAlias = Literal["connect", "429", "503", "first_byte", "500", "502", "504"]

ADMIN_TOKEN = "RELAY_ADMIN_TOKEN"  # noqa: S105 — the name of a variable, not a token
ANY_MODEL = "*"

# Of more problems than these nobody wants to know the line before he has mended the first.
_PLACED = 20

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\sA-Z]+\Z")
_WILDCARD_HOSTS = frozenset({"0.0.0.0", "::", "[::]"})  # noqa: S104 — compared, not bound
# Of store.url.
_STORE_SCHEMES = ("embedded", "memory", *SCHEMES)


class Server(Table, frozen=True, kw_only=True):
    """The public listener. Sizes in bytes, times in seconds."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    workers: Count = 1
    # From SIGTERM on all are served as ever, but readiness is red: until then a balancer goes on sending.
    shutdown_delay_s: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    drain_s: Annotated[float, Meta(ge=0, le=86400)] = 30.0  # after it; 0: cut what is still running
    max_body_bytes: Count = 2_097_152
    body_timeout_s: Seconds = 30.0
    idle_timeout_s: Seconds = 75.0
    stall_timeout_s: Seconds = 60.0
    keepalive_s: Seconds = 10.0
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cors_origins == ("*",):
            return
        for origin in self.cors_origins:
            if not _ORIGIN.match(origin):
                raise ValueError(
                    f"cors_origins: {origin!r} is not an origin as browsers send it; "
                    'write "https://host" or "https://host:port" in lower case without a path, or ["*"] alone'
                )


class Admin(Table, frozen=True, kw_only=True):
    """The second listener. Without a token there is no /admin."""

    host: Host = "127.0.0.1"
    port: Port = 8081
    token: Secret | None = None


class Store(Table, frozen=True, kw_only=True):
    """Where shared state lives. The URL is a secret, since it may carry a password.

    prefix: what the names of all keys begin with, so that two relays may use one Redis for different things.
    timeout_ms: how long a request may wait for one answer of the store, finding it included.
    data_dir: where the relay keeps files of its own, the journal for one; `embedded:DIR` goes before it.
    """

    url: Secret = field(default_factory=lambda: Secret("embedded:"))
    prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,32}$")] = "relay"
    timeout_ms: Annotated[int, Meta(ge=1, le=60_000)] = 50
    data_dir: Annotated[str, Meta(min_length=1)] = "relay-data"

    def __post_init__(self) -> None:
        scheme, colon, rest = self.url.reveal().partition(":")
        if not colon or scheme not in _STORE_SCHEMES:
            near = nearest(scheme, _STORE_SCHEMES) if colon else None
            forms = "embedded:, embedded:DIR, redis://, rediss://, redis+sentinel://, redis+cluster:// or memory:"
            raise ValueError(f"url: unknown scheme; {f'did you mean {near}:? ' if near else ''}give one of {forms}")
        if scheme == "memory" and rest:
            raise ValueError("url: memory: is not followed by what it needs; nothing follows it")
        try:
            _ = self.address
        except ValueError as error:
            raise ValueError(f"url: {error}") from None

    @property
    def scheme(self) -> str:
        """What comes before the first colon."""
        return self.url.reveal().partition(":")[0]

    @property
    def address(self) -> Address | None:
        """Where a server is that others run; None for `embedded:` and `memory:`."""
        return parse_address(self.url.reveal()) if self.scheme in SCHEMES else None

    def data(self, folder: Path) -> Path:
        """Where the relay keeps files of its own: the DIR of `embedded:DIR`, else `data_dir`; `folder` is relay.toml's."""
        rest = self.url.reveal().partition(":")[2] if self.scheme == "embedded" else ""
        return folder / (rest or self.data_dir)


class Upstream(Table, frozen=True, kw_only=True):
    """An OpenAI-compatible server. `base_url` has no slash at its end. Times in seconds."""

    name: Name
    base_url: str
    api_key: Secret | None = None
    models: tuple[Name, ...] | dict[Name, Name]
    weight: Count = 1
    priority: int = 0
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 60.0
    idle_timeout_s: Seconds = 60.0
    retry_on: tuple[RetryOn, ...] = ("connect", "429", "503")
    usage: Literal["inject", "off"] = "inject"

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "base_url", _base_url(self.base_url))
        if self.api_key is not None and not self.api_key.reveal().isprintable():
            raise ValueError("api_key holds a character that no header can carry; look for a line break inside it")
        if not self.models:
            raise ValueError(
                f'models is empty; name the models to serve, or give ["{ANY_MODEL}"] to pass every name through'
            )
        for public, upstream in self.model_map.items():
            if (public == ANY_MODEL) != (upstream == ANY_MODEL):
                raise ValueError(
                    f'models: {public!r} = {upstream!r}: "*" stands for the name asked for; write "*" = "*", or name both'
                )

    @property
    def model_map(self) -> dict[str, str]:
        """Public name → the upstream's name. The entry "*" → "*" passes every other name through."""
        return dict(self.models) if isinstance(self.models, dict) else {name: name for name in self.models}


class Branch(Table, frozen=True, kw_only=True):
    """Plugins for the requests that fit `match`, behind those that all meet; without `match` for all that no other takes."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    match: Match | None = None
    plugins: tuple[dict[str, object], ...] = ()

    def __repr__(self) -> str:
        return f"Branch(name={self.name!r}, match={self.match!r}, plugins={_shown(self.plugins)!r})"


class Document(Table, frozen=True, kw_only=True):
    """The tables of the file."""

    server: Server = field(default_factory=Server)
    admin: Admin = field(default_factory=Admin)
    store: Store = field(default_factory=Store)
    upstreams: tuple[Upstream, ...] = ()
    plugins: tuple[dict[str, object], ...] = ()
    chains: tuple[Branch, ...] = ()

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ValueError("upstreams: there are none; add an [[upstreams]] table with name, base_url and models")
        names = [upstream.name for upstream in self.upstreams]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise ValueError(
                    f"upstreams[{index}].name: {name!r} is taken by upstreams[{names.index(name)}]; give each its own"
                )
        if _same_listener(self.server, self.admin):
            raise ValueError(
                f"admin.port: {self.admin.port} is the public listener's on the same host; give one of them another port"
            )
        _named(self.plugins, "plugins")
        for index, branch in enumerate(self.chains):
            _named(branch.plugins, f"chains[{index}].plugins")

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__ if name != "text"}
        shown["plugins"] = _shown(self.plugins)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


class Config(Document, frozen=True, kw_only=True):
    """The tables of the file, and where it is: relative paths in it start at its folder. text: as it was read, secrets and all."""

    path: Path
    text: str = ""

    @property
    def folder(self) -> Path:
        return self.path.parent

    def wrong(self, problems: Iterable[str]) -> ConfigError:
        """What is wrong with it, each with the line that it is about, if it is about one."""
        return _placed(problems, self.text, self.path)


def load(path: Path) -> Config:
    """The configuration of a file. Raises ConfigError."""
    return parse(text_of(path), path)


def text_of(path: Path) -> str:
    """What stands in a file. Raises ConfigError."""
    try:
        return path.read_bytes().decode()
    except OSError as error:
        # Not of one that is there: it would be overwritten.
        missing = isinstance(error, FileNotFoundError)
        remedy = f"`relay init > {path}` writes a first one" if missing else "let this user read it, as a file"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def parse(text: str, path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a text that was read from `path`. Raises ConfigError with every problem found."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None  # the message ends with line and column
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ConfigError(
            f"{path}: cannot be read: {type(error).__name__}; look for a number or nesting too long"
        ) from None
    try:
        tables = read(Document, document, context=Context(folder=path.parent, environ=environ))
    except ConfigError as error:
        raise _placed(error.problems, text, path) from None
    admin = tables.admin
    if admin.token is None and (token := environ.get(ADMIN_TOKEN)):
        admin = msgspec.structs.replace(admin, token=Secret(token))
    return Config(
        server=tables.server,
        admin=admin,
        store=tables.store,
        upstreams=tables.upstreams,
        plugins=tables.plugins,
        chains=tables.chains,
        path=path,
        text=text,
    )


def _placed(problems: Iterable[str], text: str, path: Path) -> ConfigError:
    problems = tuple(problems)
    lines = [(line_of(text, path_of(problem)), problem) for problem in problems[:_PLACED]]
    lines += [(0, problem) for problem in problems[_PLACED:]]
    return ConfigError(*(f"{path}:{line}: {problem}" if line else f"{path}: {problem}" for line, problem in lines))


def takes_restart(first: Config, now: Config) -> list[str]:
    """Keys that a reload changes in vain: what they name was opened at the start."""
    pairs: dict[str, tuple[object, object]] = {
        "server.host": (first.server.host, now.server.host),
        "server.port": (first.server.port, now.server.port),
        "admin.host": (first.admin.host, now.admin.host),
        "admin.port": (first.admin.port, now.admin.port),
        "admin.token": (_revealed(first.admin.token), _revealed(now.admin.token)),
        "store.url": (first.store.url.reveal(), now.store.url.reveal()),
        "store.prefix": (first.store.prefix, now.store.prefix),
        "store.data_dir": (first.store.data_dir, now.store.data_dir),
    }
    if first.server.workers == 1:  # of several each worker opens the store anew
        pairs["server.workers"] = (1, now.server.workers)
        pairs["store.timeout_ms"] = (first.store.timeout_ms, now.store.timeout_ms)
    return [key for key, (before, after) in pairs.items() if before != after]


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()


def _named(plugins: Sequence[Mapping[str, object]], path: str) -> None:
    """Raises ValueError for a table that does not name its plugin."""
    for index, table in enumerate(plugins):
        if not isinstance(use := table.get("use"), str) or not use:
            raise ValueError(f'{path}[{index}].use: missing; name a plugin, as in use = "auth" or use = "module:Class"')


def _shown(plugins: Iterable[Mapping[str, object]]) -> tuple[object, ...]:
    """Of tables that are read later, and in which secrets stand as they were written, the names of the plugins."""
    return tuple(table["use"] for table in plugins)


def _base_url(url: str) -> str:
    """The URL without slashes at its end. No message repeats it: a password may stand in it."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError("base_url holds white space or control characters")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("base_url is not an http or https URL; write it as in http://host:port/v1")
    if "@" in parts.netloc:
        raise ValueError("base_url carries a user or password; give the key in api_key")
    if "?" in url or "#" in url:
        raise ValueError("base_url carries a query or fragment; end it with the path, as in http://host:port/v1")
    return url.rstrip("/")


def _same_listener(server: Server, admin: Admin) -> bool:
    hosts = {server.host, admin.host}
    return server.port == admin.port != 0 and (len(hosts) == 1 or not hosts.isdisjoint(_WILDCARD_HOSTS))
