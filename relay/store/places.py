"""Where the keys of a store are: on one server, on the one that sentinels call the master, or on the nodes of a Cluster.

redis-py knows how each is found and makes the connections; what goes over them is a `Link`'s affair.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisClusterException, RedisError, ResponseError

from relay.store.address import Address, Node
from relay.store.link import CONNECT_S, Command, Link, Observer

Dial = Callable[[], Awaitable[AbstractConnection]]

# One sentinel, one node: the next one may know more.
ASK_S: Final = 0.5
# How often the nodes of a Cluster are asked who has which slots while something is wrong, and a server that writes nothing
# gets a new connection: it may only lack replicas, and what reads still runs there.
REFRESH_EVERY_S: Final = 0.25


class Places(Protocol):
    """The links of a store."""

    @property
    def links(self) -> Sequence[Link]: ...

    def link(self, key: str) -> Link | None:
        """Where a key is; None if that is not known now."""
        ...

    def redirect(self, command: Command, error: MovedError | AskError) -> bool:
        """Send a command where its server says. Whether that is anywhere."""
        ...

    def demoted(self, link: Link) -> None:
        """The server of this link writes nothing: it may be a replica by now."""
        ...

    async def open(self) -> None:
        """Connect. Raises what redis-py raises, or TimeoutError; what failed is tried again when it is needed."""
        ...

    async def info(self) -> dict[str, str]:
        """What a server says of itself (INFO)."""
        ...

    async def aclose(self) -> None: ...


def places(address: Address, timeout_s: float, observer: Observer) -> Places:
    match address.kind:
        case "cluster":
            return _Cluster(address, timeout_s, observer)
        case "sentinel":
            return _One(_Master(address), timeout_s, observer)
        case "socket":
            return _One(_dialler(UnixDomainSocketConnection, _options(address, path=address.path)), timeout_s, observer)
        case "single":
            (host, port) = address.hosts[0]
            return _One(_dialler(_class(address), _options(address, host=host, port=port)), timeout_s, observer)


def _options(address: Address, **place: Any) -> dict[str, Any]:
    """What redis-py's connections take.

    No time-outs of its own: they would be timers for every command. No driver_info: it is read from the disk.
    """
    tls = {} if address.tls is None else address.tls
    return {
        "username": address.username,
        "password": address.password,
        "db": address.db,
        "protocol": 2,
        "driver_info": None,
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_S,
        "retry": _never(),
        **({} if "path" in place else {"socket_keepalive": True}),
        **tls,
        **place,
    }


def _never() -> Retry:
    return Retry(NoBackoff(), 0)


def _class(address: Address) -> type[AbstractConnection]:
    return Connection if address.tls is None else SSLConnection


def _dialler(cls: type[AbstractConnection], options: dict[str, Any]) -> Dial:
    async def dial() -> AbstractConnection:
        connection = cls(**options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            # The kernel takes a connection for a server that is hung, too.
            await connection.send_command("PING")
            try:
                await connection.read_response()
            except ResponseError as error:
                if not str(error).startswith("MISCONF"):  # its disk is full: what reads still runs
                    raise
        except BaseException:
            with suppress(RedisError, OSError, TimeoutError):
                await connection.disconnect(nowait=True)
            raise
        return connection

    return dial


async def _info(dial: Dial) -> dict[str, str]:
    connection = await dial()  # within the time-out of who asks
    try:
        await connection.send_command("INFO")
        lines = (await connection.read_response()).decode().splitlines()
    finally:
        await connection.disconnect()
    return dict(line.split(":", 1) for line in lines if ":" in line)


class _Master:
    """Dials the server that the sentinels call the master now."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def __call__(self) -> AbstractConnection:
        address = self._address
        tls = {} if address.tls is None else {"ssl": True, **address.tls}
        options: dict[str, Any] = {
            "protocol": 2,
            "driver_info": None,
            "socket_timeout": ASK_S,
            "socket_connect_timeout": ASK_S,
            "retry": _never(),
        }
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.hosts, sentinel_kwargs={**options, **address.sentinel, **tls}
        )
        try:
            host, port = await sentinel.discover_master(address.service)
        finally:
            await sentinel.aclose()
        return await _dialler(_class(address), _options(address, host=host, port=port))()


class _One:
    """Every key is at one place."""

    def __init__(self, dial: Dial, timeout_s: float, observer: Observer) -> None:
        self._dial = dial
        self._link = Link(dial, timeout_s, observer)
        self._loop = asyncio.get_running_loop()
        self._renewed_at = -math.inf
        self.links = (self._link,)

    def link(self, key: str) -> Link:
        return self._link

    def redirect(self, command: Command, error: MovedError | AskError) -> bool:
        return False

    def demoted(self, link: Link) -> None:
        now = self._loop.time()
        if now >= self._renewed_at + REFRESH_EVERY_S:
            self._renewed_at = now
            link.renew()

    async def open(self) -> None:
        await self._link.connect()

    async def info(self) -> dict[str, str]:
        return await _info(self._dial)

    async def aclose(self) -> None:
        await self._link.aclose()


class _Cluster:
    """Keys are where redis-py's table of slots says. It is read anew when a node says so, or does not answer."""

    def __init__(self, address: Address, timeout_s: float, observer: Observer) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._links: dict[Node, Link] = {}
        self._cluster = self._from_seeds()
        self._slots: dict[int, list[ClusterNode]] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def links(self) -> Sequence[Link]:
        return tuple(self._links.values())

    def link(self, key: str) -> Link | None:
        nodes = self._slots.get(key_slot(key.encode()))
        if not nodes:
            self._refresh_soon()
            return None
        return self._to((nodes[0].host, int(nodes[0].port)))

    def redirect(self, command: Command, error: MovedError | AskError) -> bool:
        asking = isinstance(error, AskError)
        if not asking:
            self._refresh_soon()
        if not error.host:
            return False
        command.turn.moved = True
        command.sent = False
        command.asking = asking
        self._to((error.host, int(error.port))).send(command)
        return True

    def demoted(self, link: Link) -> None:
        self._refresh_soon()

    async def open(self) -> None:
        await self._refresh()
        for link in self.links:
            await link.connect()

    async def info(self) -> dict[str, str]:
        primaries = self._cluster.get_primaries()
        return await _info(self._dialler((primaries[0].host, int(primaries[0].port))))

    async def aclose(self) -> None:
        self._closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait((self._refreshing,))
        await asyncio.gather(*(link.aclose() for link in self.links))
        if self._closing:
            await asyncio.wait(tuple(self._closing))
        await self._forget(self._cluster)

    def _to(self, node: Node) -> Link:
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = Link(
                self._dialler(node), self._timeout_s, self._observer, failing=self._refresh_soon
            )
        return link

    def _dialler(self, node: Node) -> Dial:
        return _dialler(_class(self._address), _options(self._address, host=node[0], port=node[1]))

    def _from_seeds(self) -> RedisCluster:
        address = self._address
        tls: dict[str, Any] = {} if address.tls is None else {"ssl": True, **address.tls}
        return RedisCluster(
            startup_nodes=[ClusterNode(host, port, driver_info=None) for host, port in address.hosts],
            username=address.username,
            password=address.password,
            protocol=2,
            driver_info=None,
            socket_timeout=ASK_S,
            socket_connect_timeout=ASK_S,
            retry=_never(),
            require_full_coverage=False,
            **tls,
        )

    def _refresh_soon(self) -> None:
        if (self._refreshing is None or self._refreshing.done()) and not self._closed:
            self._refreshing = self._loop.create_task(self._refresh_quietly())

    async def _refresh_quietly(self) -> None:
        await asyncio.sleep(self._refreshed_at + REFRESH_EVERY_S - self._loop.time())
        with suppress(RedisError, RedisClusterException, OSError, TimeoutError):
            await self._refresh()

    async def _refresh(self) -> None:
        """Ask who has which slots: the nodes known, and if none of them answers the configured ones."""
        self._refreshed_at = self._loop.time()
        try:
            await self._cluster.nodes_manager.initialize()
        except (RedisError, RedisClusterException, OSError, TimeoutError):
            await self._forget(self._cluster)
            self._cluster = self._from_seeds()
            if not self._slots:
                raise
            await self._cluster.nodes_manager.initialize()
        self._slots = self._cluster.nodes_manager.slots_cache
        nodes = {(node.host, int(node.port)) for node in self._cluster.get_primaries()}
        for node in nodes:
            self._to(node)
        for node in set(self._links) - nodes:
            closing = self._loop.create_task(self._links.pop(node).aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    @staticmethod
    async def _forget(cluster: RedisCluster) -> None:
        await cluster.nodes_manager.aclose()
        await cluster.nodes_manager.aclose("startup_nodes")
