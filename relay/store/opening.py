"""From a configuration to a store that is open.

What cannot become right by waiting stops the start: a wrong password, what is no Redis, a Cluster that is none. A store
that is away does not: the relay does what its policies say without one, and finds it when it is there.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    InvalidResponse,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from relay.config import Store as StoreTable
from relay.events import NOWHERE, Publisher
from relay.log import Logger
from relay.metrics import Metrics
from relay.options import ConfigError
from relay.store.address import Address
from relay.store.embedded import attached, embedded, shared
from relay.store.redis import RedisStore

# Of Redis, whose number Valkey gives too: what functions our scripts use.
LEAST_VERSION: Final = (6, 2)
INFO_S: Final = 2.0


@asynccontextmanager
async def opened(
    table: StoreTable,
    *,
    folder: Path,
    data: Path,
    log: Logger,
    metrics: Metrics,
    own: bool = True,
    events: Publisher = NOWHERE,
) -> AsyncIterator[RedisStore | None]:
    """The store of a relay while the block runs; None for `memory:`. Raises ConfigError.

    folder: where relative paths start. data: where the relay keeps files. own: False for a worker, whose supervisor runs
    the embedded server.
    """
    if table.scheme == "memory":
        yield None
        return

    def restarted() -> None:
        metrics.store.restarted()
        events.publish("store", state="restarted")

    async with AsyncExitStack() as stack:
        if table.scheme != "embedded":
            address = await asyncio.to_thread(_located, table, folder)
        elif own:
            path = await stack.enter_async_context(embedded(data, log, restarted))
            address = Address(kind="socket", path=path)
        else:
            address = Address(kind="socket", path=await shared(data))
        yield await stack.enter_async_context(_open(address, table, log, metrics))


@asynccontextmanager
async def borrowed(
    table: StoreTable, *, folder: Path, data: Path, log: Logger, timeout_s: float = 5.0
) -> AsyncIterator[RedisStore | None]:
    """The same for a command beside a relay, which may wait longer. Raises ConfigError, also if the store is away."""
    if table.scheme == "memory":
        yield None
        return
    async with AsyncExitStack() as stack:
        if table.scheme == "embedded":
            address = Address(kind="socket", path=await stack.enter_async_context(attached(data, log)))
        else:
            address = await asyncio.to_thread(_located, table, folder)
        store = RedisStore.at(address, timeout_s=timeout_s, prefix=table.prefix)
        stack.push_async_callback(store.aclose)
        if away := await _reach(store, address):
            raise ConfigError(f"store.url: {address.place} cannot be reached ({away})")
        yield store


@asynccontextmanager
async def _open(address: Address, table: StoreTable, log: Logger, metrics: Metrics) -> AsyncIterator[RedisStore]:
    store = RedisStore.at(address, timeout_s=table.timeout_ms / 1000, prefix=table.prefix, observer=metrics.store)
    metrics.store.watch(lambda: store.up)
    try:
        if away := await _reach(store, address):
            log.warning("store away", place=address.place, reason=away)
        else:
            await _look_over(store, address, log)
        yield store
    finally:
        await store.aclose()


def _located(table: StoreTable, folder: Path) -> Address:
    """Where the files of TLS are named from the configuration's folder."""
    address = table.address
    assert address is not None
    if address.tls is None:
        return address
    tls = dict(address.tls)
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        if name in tls:
            path = folder / str(tls[name])
            if not path.is_file():
                raise ConfigError(f"store.url: {name}: there is no file {path}")
            tls[name] = str(path)
    return dataclasses.replace(address, tls=tls)


async def _reach(store: RedisStore, address: Address) -> str:
    """Connect; why not, if it may become right by waiting. Raises ConfigError if it may not."""
    try:
        await store.open()
    except (RedisError, RedisClusterException, OSError, TimeoutError) as error:
        for cause in _causes(error):
            if problem := _problem(cause, address):
                raise ConfigError(f"store.url: {address.place}: {problem}") from None
        return type(error).__name__
    return ""


def _causes(error: BaseException) -> list[BaseException]:
    causes = []
    following: BaseException | None = error
    while following is not None and following not in causes:
        causes.append(following)
        # redis-py wraps what it did not expect: `ConnectionError(SSLError(…))`.
        causes += [part for part in following.args if isinstance(part, BaseException)]
        following = following.__cause__ or following.__context__
    return causes


def _problem(error: BaseException, address: Address) -> str:
    """What to do about what waiting does not mend."""
    said = str(error)
    if isinstance(error, AuthenticationError | AuthorizationError):
        return "the server takes no such user or password, or wants one; write it as in //user:password@host"
    if isinstance(error, ssl.SSLError):
        return f"no TLS ({error.reason or said}); ssl_ca_certs names the authority, and redis: is without TLS"
    if isinstance(error, InvalidResponse):
        return "what answers there is no Redis"
    if address.kind == "cluster" and "not enabled on this node" in said:
        return "this is no Cluster; write redis://"
    if isinstance(error, ResponseError) or "Invalid Database" in said:
        return f"the server refuses: {said[:200]}"
    return ""


async def _look_over(store: RedisStore, address: Address, log: Logger) -> None:
    """See whether it is what it should be. Raises ConfigError."""
    try:
        async with asyncio.timeout(INFO_S):
            info = await store.info()
    except (RedisError, OSError, TimeoutError):
        return  # it may be forbidden to ask
    mode = info.get("redis_mode", "standalone")
    if mode != "standalone" and address.kind != "cluster":
        remedy = "redis+cluster://" if mode == "cluster" else "redis+sentinel://host:26379/service"
        raise ConfigError(f"store.url: {address.place}: this is a {mode}; write {remedy}")
    version = info.get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < LEAST_VERSION:
        raise ConfigError(f"store.url: {address.place}: Redis {version} is too old; 6.2 is the first that does")
    if (policy := info.get("maxmemory_policy", "noeviction")) != "noeviction":
        log.warning(
            "store may forget", reason=f"maxmemory-policy is {policy}: what is kept may be evicted; set noeviction"
        )
    log.info("store", place=address.place, version=info.get("valkey_version") or version, mode=mode)
