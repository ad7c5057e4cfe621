"""Who has fallen silent: looks taken at a reply twice a second, since a timer for every read would cost more than the read."""

from __future__ import annotations

from typing import Final

from relay.delivery import Replay, StreamDelivery, WholeDelivery
from relay.errors import InternalError, UpstreamError
from relay.exchange import Exchange, Outcome
from relay.log import Logger
from relay.writer import Writer

# How often replies are looked at.
WATCH_S: Final = 0.5
# Of an upstream that only comments (that it is still there, that it waits itself): how many times longer it may do so than
# be silent.
COMMENTS: Final = 10
# How long sinks may hold what they have after the upstream's end: longer than any verdict takes.
KEPT_END_S: Final = 120.0

Delivery = StreamDelivery | WholeDelivery | Replay


class SilenceWatch:
    """One open reply, and what was seen of it at the last look. Times in seconds of the loop's clock.

    A client that is sent nothing for `keepalive_s` gets a comment. An upstream that sends nothing for `idle_timeout_s`,
    or nothing but comments for COMMENTS times as long, ends the reply with an error, unless we ourselves hold it.
    """

    __slots__ = (
        "_chunks", "_delivery", "_ex", "_idle_timeout_s", "_keepalive_s", "_log", "_read_at", "_reads", "_said",
        "_said_at", "_writer", "_wrote_at",
    )  # fmt: skip

    def __init__(
        self,
        ex: Exchange,
        writer: Writer,
        delivery: Delivery,
        log: Logger,
        *,
        keepalive_s: float,
        idle_timeout_s: float,
    ) -> None:
        self._ex = ex
        self._writer = writer
        self._delivery = delivery
        self._log = log
        self._keepalive_s = keepalive_s
        self._idle_timeout_s = idle_timeout_s
        self._chunks = self._reads = self._said = 0
        self._read_at = self._said_at = self._wrote_at = ex.loop.time()

    def look(self, now: float) -> None:
        """See what has changed, and act on what has not for too long."""
        writer, delivery = self._writer, self._delivery
        if writer.chunks != self._chunks:
            self._chunks, self._wrote_at = writer.chunks, now
        elif now - self._wrote_at >= self._keepalive_s:
            self._wrote_at = now
            writer.keep_alive()
        if delivery.done:
            if now - self._read_at >= KEPT_END_S and writer.outcome is None:
                self._log.error("a sink kept the end of a reply", request_id=self._ex.id)
                writer.end(Outcome("internal_error", InternalError()))
        elif isinstance(delivery, Replay):
            self._read_at = now
        else:
            self._listen(delivery, now)

    def _listen(self, delivery: StreamDelivery | WholeDelivery, now: float) -> None:
        delivery.look()
        said = delivery.reads - delivery.empty_reads
        if said != self._said or self._ex.paused:
            self._said, self._said_at = said, now
        if delivery.reads != self._reads or self._ex.paused:
            self._reads, self._read_at = delivery.reads, now
        limit_s = self._idle_timeout_s
        if now - self._read_at >= limit_s or now - self._said_at >= COMMENTS * limit_s:
            error = UpstreamError(
                "The model server fell silent; what was sent is all there is. Ask again.",
                code="upstream_timeout",
                status=504,
                kind="idle",
            )
            self._ex.stop(Outcome("upstream_error", error))
