"""Where a store is, read from its URL. Nothing is opened or looked up here.

    redis://[[user]:password@]host[:6379][/db][?options]          rediss:// over TLS
    redis+sentinel://[[user]:password@]host[:26379],host…/service[/db][?options]      rediss+sentinel://
    redis+cluster://[[user]:password@]host[:6379],host…[?options]                     rediss+cluster://
    unix://[[user]:password@]/path/of/socket[?db=N]

User and password are the Redis server's. Options of Sentinel: sentinel_username, sentinel_password. Options of TLS, which
with Sentinel holds for the sentinels too: ssl_ca_certs, ssl_certfile, ssl_keyfile (paths), ssl_check_hostname (true,
false), ssl_cert_reqs (required, optional, none).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Kind = Literal["single", "sentinel", "cluster", "socket"]

SCHEMES: Final[dict[str, Kind]] = {
    "redis": "single",
    "rediss": "single",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
    "unix": "socket",
}

_TLS_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname", "ssl_cert_reqs")
_SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
_BOOLEANS: Final = {"true": True, "false": False}
_CERT_REQS: Final = ("required", "optional", "none")
_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\[\]:,/?#@\s]+))(?::(?P<port>[0-9]{1,5}))?")

Node = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Address:
    """hosts: of the server, the sentinels, or some nodes of the cluster. tls: options as redis-py names them."""

    kind: Kind
    hosts: tuple[Node, ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    tls: dict[str, str | bool] | None = None
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def place(self) -> str:
        """For people: where, without who."""
        return self.path or ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )


def parse(url: str) -> Address:
    """The address that a URL names. Raises ValueError, with a sentence that repeats nothing of the URL."""
    scheme, _, rest = url.partition(":")
    kind = SCHEMES[scheme]
    if re.search(r"[\s\x00-\x1f\x7f#]", url):
        raise ValueError(
            f"{scheme}: holds white space, a control character or '#'; write it in % notation, as %20 for a space"
        )
    parts = urlsplit("//" + rest.removeprefix("//"), allow_fragments=False)
    username, password, hosts = _authority(scheme, parts.netloc)
    path = unquote(parts.path)
    options = _options(scheme, kind, parts.query)
    tls = None
    if scheme.startswith("rediss"):
        tls = {name: _tls_option(name, value) for name, value in options.items() if name in _TLS_OPTIONS}
    if kind == "socket":
        if hosts or len(path) < 2:
            raise ValueError(
                "unix: is not followed by what it needs; give it a path, as in unix:///run/redis/redis.sock"
            )
        return Address(kind=kind, path=path, db=_db(options.get("db", "")), username=username, password=password)
    if not hosts or not rest.startswith("//"):
        form = {
            "single": "a host, as in //host:6379/0",
            "sentinel": "the sentinels and the name of the service, as in //host1:26379,host2:26379/mymaster",
            "cluster": "some nodes, as in //host1:6379,host2:6379",
        }[kind]
        raise ValueError(f"{scheme}: is not followed by what it needs; give it {form}")
    if kind == "single" and len(hosts) > 1:
        raise ValueError(f"{scheme}: names several hosts; a Cluster is redis+cluster:, a Sentinel redis+sentinel:")
    nodes = tuple(_node(host, 26379 if kind == "sentinel" else 6379) for host in hosts)
    steps = [step for step in path.split("/") if step]
    service = steps.pop(0) if kind == "sentinel" and steps else ""
    if kind == "sentinel" and not service:
        raise ValueError(f"{scheme}: names no service; end it with the name that the sentinels know, as in /mymaster")
    if kind == "cluster" and steps not in ([], ["0"]):
        raise ValueError(f"{scheme}: a Cluster has no databases; leave out what follows the nodes")
    if len(steps) > 1:
        raise ValueError(f"{scheme}: more follows the hosts than one database; write it as in /0")
    return Address(
        kind=kind,
        hosts=nodes,
        service=service,
        db=_db(steps[0] if steps else ""),
        tls=tls,
        username=username,
        password=password,
        sentinel={
            name.removeprefix("sentinel_"): value for name, value in options.items() if name in _SENTINEL_OPTIONS
        },
    )


def _authority(scheme: str, netloc: str) -> tuple[str | None, str | None, list[str]]:
    who, at, where = netloc.rpartition("@")
    username, _, password = who.partition(":")
    if at and not password:
        raise ValueError(f"{scheme}: has an @ but no password before it; write :password@, or user:password@")
    return unquote(username) or None, unquote(password) or None, where.split(",") if where else []


def _node(text: str, port: int) -> Node:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match["port"] or port) < 65536:
        raise ValueError("one of the hosts is not written as host, host:port or [address]:port")
    return match["six"] or unquote(match["host"]), int(match["port"] or port)


def _options(scheme: str, kind: Kind, query: str) -> dict[str, str]:
    known = (
        *(_TLS_OPTIONS if scheme.startswith("rediss") else ()),
        *(_SENTINEL_OPTIONS if kind == "sentinel" else ()),
        *(("db",) if kind == "socket" else ()),
    )
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "it takes none"
            hint = "; TLS is rediss:" if name in _TLS_OPTIONS else ""
            hint = "; the time-out is store.timeout_ms" if "timeout" in name else hint
            raise ValueError(f"{scheme}: does not know one of the options after '?'; {there}{hint}")
    return options


def _tls_option(name: str, value: str) -> str | bool:
    if name == "ssl_check_hostname":
        if value.lower() not in _BOOLEANS:
            raise ValueError("ssl_check_hostname is true or false")
        return _BOOLEANS[value.lower()]
    if name == "ssl_cert_reqs" and value not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs is one of {', '.join(_CERT_REQS)}")
    if not value:
        raise ValueError(f"{name} is empty; give it a path")
    return value


def _db(text: str) -> int:
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise ValueError("the database is not a number; write it as in /0")
    return int(text or 0)
