"""A client that reads nothing, and what a proxy holds for it.

The model server sends events of 4 KiB, 1,000 a second, until nobody takes any more. Of the bytes that have left it then,
some wait in the kernel: between it and the proxy, and between the proxy and the client. proc(5) says how many, for both
ends of both connections. The rest is what the proxy holds itself. (A proxy may put other borders of chunks around events
than the model server: with events of this size that is 0.2 % of what waits in the kernel.)
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.load import request
from bench.model import state
from bench.proxies import KEY, Proxy

NAME: Final = "slow"
# What the client's kernel may read ahead.
_WINDOW: Final = 4096
# A proxy that has not paused the model server by then does not mean to.
PATIENCE_S: Final = 4.0
_REST_S: Final = 0.3


@dataclass(frozen=True)
class SlowReader:
    """held_kb: by the proxy, for it. paused: whether the proxy has stopped reading what the model server sends."""

    held_kb: float
    paused: bool


@contextmanager
def slow_reader(proxy: Proxy, model_port: int) -> Iterator[SlowReader]:
    """While the block runs it reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW)
        client.connect(("127.0.0.1", proxy.port))
        client.sendall(request(KEY, model=NAME))
        port, paused = _at_rest(model_port)
        waiting = queued((port, model_port)) + queued((client.getsockname()[1], proxy.port))
        yield SlowReader(max(0, state(model_port, NAME)["sent"] - waiting) / 1024, paused)


def _at_rest(model_port: int) -> tuple[int, bool]:
    """When nothing moves any more, or has had the time to stop: the proxy's port, and whether the model server waits."""
    until = time.monotonic() + PATIENCE_S
    before = -1
    while True:
        time.sleep(_REST_S)
        now = state(model_port, NAME)
        paused = now["blocked"] and now["sent"] == before
        if paused or time.monotonic() > until:
            return now["port"], paused
        before = now["sent"]


def queued(ports: tuple[int, int]) -> int:
    """The bytes of one connection on loopback, given by its two ports, that the kernel holds in both directions."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if {_port(local), _port(remote)} == set(ports):
            total += sum(int(size, 16) for size in queues.split(":"))
    return total


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
