"""What is told of a request that has ended: its record for the metrics, its line in the log, and an event if it was cut."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from relay.delivery import Replay
from relay.errors import InternalError, RelayError
from relay.events import MODEL_CHARS, Publisher
from relay.exchange import CALLER, STOPPED_BY, Outcome
from relay.log import Logger
from relay.metrics import OTHER, Metrics, RequestRecord
from relay.open_reply import Open
from relay.pure.openai import told_tokens

# What else stands in the line of a request, of one that was none.
_NOTHING_MORE: Mapping[str, object] = dict.fromkeys(
    "caller chain model stream upstream chunks duration_ms first_byte_ms first_text_ms upstream_ms moderation_ms relay_ms "
    "plugins_ms input_tokens output_tokens".split()
)

# A float that is added to a number and taken from it again leaves a whole one, the nearest: above it there are no others.
_WHOLE = 1.5 * 2.0**52


class Reports:
    """Tells of each request once."""

    def __init__(self, metrics: Metrics, log: Logger, events: Publisher) -> None:
        self._metrics = metrics
        self._log = log
        self._events = events

    def ended(self, reply: Open, outcome: Outcome) -> None:
        """Count a request that has ended, and write its line."""
        ex, writer, answer, delivery = reply.ex, reply.writer, reply.answer, reply.delivery
        error, loaded, started = outcome.error, ex.loaded, ex.started
        operation = ex.operation if reply.routed else OTHER
        record = RequestRecord(operation, outcome.kind, monotonic() - started, ex.id, ex.steps)
        upstream = model = stream = first_byte_s = moderation_s = None
        if loaded is not None:
            record.model, record.stream = model, stream = loaded.model, loaded.stream
        if answer is not None:
            record.upstream = upstream = answer.upstream.name
        if writer is not None:
            record.chunks = writer.chunks
            if writer.first_at:
                first_byte_s = writer.first_at - started
            if writer.first_text_at is not None:
                record.first_text_s = writer.first_text_at - started
        if error is not None and first_byte_s is None:
            record.refusal = error.code
        if delivery is not None and not isinstance(delivery, Replay):
            record.input_tokens, record.output_tokens = told_tokens(delivery.usage)
            if record.first_text_s is not None and delivery.first_text_at is not None:
                moderation_s = _split(reply, record, record.first_text_s, delivery.first_text_at - started)
        self._metrics.request_ended(record)
        self._log.line(
            "request",
            {
                "request_id": ex.id,
                "operation": operation,
                "outcome": outcome.kind,
                "code": error.code if error is not None else None,
                "status": reply.status or None,
                "caller": ex.get(CALLER, "") or None,
                "chain": ex.chain or None,
                "model": model[:64] if model is not None else None,
                "stream": stream,
                "upstream": upstream,
                "chunks": record.chunks,
                "duration_ms": _ms(record.duration_s),
                "first_byte_ms": _ms(first_byte_s),
                "first_text_ms": _ms(record.first_text_s),
                "upstream_ms": _ms(record.upstream_s),
                "moderation_ms": _ms(moderation_s),
                "relay_ms": _ms(record.overhead_s),
                "plugins_ms": {plugin: (s * 1e5 + _WHOLE - _WHOLE) / 100.0 for plugin, _, s in ex.steps},
                "input_tokens": record.input_tokens,
                "output_tokens": record.output_tokens,
            },
        )

    def cut(self, reply: Open, outcome: Outcome) -> None:
        """Publish that a reply was cut, or a request refused."""
        ex, error = reply.ex, outcome.error
        begun = reply.writer is not None and bool(reply.writer.first_at)
        cut = outcome.kind in ("filtered", "exhausted") or (begun and error is not None)
        if not cut and error is None:
            return
        moderator, label = ex.get(STOPPED_BY, ("", ""))
        self._events.publish(
            "cut" if cut else "refusal",
            request_id=ex.id,
            outcome=outcome.kind,
            code=error.code if error is not None else None,
            status=reply.status or None,
            moderator=moderator or None,
            label=label or None,
            caller=ex.get(CALLER, "") or None,
            model=ex.loaded.model[:MODEL_CHARS] if ex.loaded else None,
            upstream=reply.answer.upstream.name if reply.answer is not None else None,
            operation=None if cut else ex.operation if reply.routed else OTHER,
        )

    def refused(self, error: RelayError, request_id: str, cause: BaseException | None) -> None:
        """What was no request has been answered by the listener."""
        outcome = Outcome.of(error).kind
        self._metrics.request_ended(RequestRecord(operation=OTHER, outcome=outcome, duration_s=0.0, refusal=error.code))
        if isinstance(error, InternalError):
            self._log.error("request failed", request_id=request_id, exc_info=cause)
        self._log.info(
            "request",
            request_id=request_id,
            operation=OTHER,
            outcome=outcome,
            code=error.code,
            status=error.status,
            **_NOTHING_MORE,
        )
        self._events.publish(
            "refusal", request_id=request_id, outcome=outcome, code=error.code, status=error.status, operation=OTHER
        )


def _split(reply: Open, record: RequestRecord, first_text_s: float, came_s: float) -> float:
    """Whose the time to the first text was, into `record`; returns what it waited for a verdict.

    first_text_s, came_s: since the request's arrival, until that text was sent on and until it came.
    """
    before, moderated_s = reply.moderated_s, reply.ex.moderated_s
    record.upstream_s = upstream_s = came_s - (reply.asked_at - reply.ex.started)
    # What held the text for longer than it took to come did not hold it while it came.
    moderation_s = before + min(max(0.0, first_text_s - came_s), (moderated_s or 0.0) - before)
    if moderated_s is not None:
        record.moderated_s = moderation_s
    record.overhead_s = max(0.0, first_text_s - upstream_s - moderation_s)
    return moderation_s


def _ms(seconds: float | None) -> float | None:
    # To hundredths. `round` costs so much more that it shows: there are ten of these in the line of a request.
    return None if seconds is None else (seconds * 1e5 + _WHOLE - _WHOLE) / 100.0
