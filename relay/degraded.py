"""What is done without the store for a while says so: in a metric, and in the reply's header."""

from __future__ import annotations

from typing import Final, Literal

from relay.exchange import Exchange
from relay.metrics import Metrics

HEADER: Final = "x-relay-degraded"

Concern = Literal["auth", "rate_limit", "quota", "moderation"]


def degraded(ex: Exchange, metrics: Metrics, concern: Concern) -> None:
    """This request is served without the shared state of `concern`. Before the head has left."""
    metrics.degraded(concern)
    said = ex.reply_headers.get(HEADER)
    if said is None:
        ex.reply_headers[HEADER] = concern
    elif concern not in said.split(", "):
        ex.reply_headers[HEADER] = f"{said}, {concern}"
