"""Whether an upstream should be asked now, learnt from the requests that it gets anyway.

This is outlier detection as Envoy has it (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier),
without the statistics: five failures in a row eject an upstream, for five seconds at first and twice as long each time
that it comes back no better. When the time is over one request is the probe, and others follow if that is answered.

Three things are counted apart, because one can be well while another is not: heads that do not come, replies that break
off, and heads that take several times as long as another upstream's of the same model. Times are in seconds, the clock
is the caller's.
"""

from __future__ import annotations

from typing import Final, Literal

Reason = Literal["heads", "replies", "slow"]
REASONS: Final[tuple[Reason, ...]] = ("heads", "replies", "slow")

# Five in a row are no accident, even of an upstream that fails every second time. Five seconds are longer than a restart
# of most servers, and a minute is not too long to notice that one is back.
CONSECUTIVE_FAILURES: Final = 5
BASE_EJECTION_S: Final = 5.0
MAX_EJECTION_S: Final = 60.0
# A probe whose client leaves tells nothing; then another request may be the next.
PROBE_S: Final = 5.0

# A head is slow that takes so many times another upstream's usual time, and longer than people notice.
SLOW_FACTOR: Final = 4.0
SLOW_S: Final = 2.0
SLOW_HEADS: Final = 10
# How much the newest of the times counts, and how many make a usual one.
_WEIGHT: Final = 0.1
_SAMPLES: Final = 10


class Health:
    """What is known of one upstream. `asked_at` is when the request in question went to it, `now` when it is told."""

    __slots__ = (
        "_broken", "_ejected_at", "_ejections", "_failed", "_leased_until", "_means", "_over_at", "_slow", "ejected"
    )  # fmt: skip

    def __init__(self) -> None:
        self.ejected = False
        self._ejected_at = 0.0
        self._over_at = 0.0  # when it may be asked again
        self._leased_until = 0.0  # by the probe
        self._ejections = 0  # in a row, without a reply that ended well in between
        self._failed = self._broken = self._slow = 0  # each in a row
        self._means: dict[str, _Mean] = {}  # by model

    def usual_s(self, model: str) -> float | None:
        """How long its heads for a model take; None while too few have been seen."""
        mean = self._means.get(model)
        return mean.seconds if mean is not None and mean.count >= _SAMPLES else None

    def ready(self, now: float) -> bool:
        """Whether it should be asked before one that is not ready."""
        return not self.ejected or now >= max(self._over_at, self._leased_until)

    def asked(self, now: float) -> None:
        """A request goes to it: the probe, if the time of its ejection is over. No other follows until that has ended, or
        has had its time.
        """
        if self.ejected and now >= self._over_at:
            self._leased_until = now + PROBE_S

    def answered(
        self, asked_at: float, now: float, model: str | None = None, usual_s: float | None = None
    ) -> Reason | None:
        """A head has come. Returns why it is ejected, if it is from now on.

        model: if how long it took says something of the upstream; usual_s: what is usual for another with that model.
        """
        if model is not None:
            mean = self._means.get(model)
            if mean is None:
                mean = self._means[model] = _Mean()
            mean.add(now - asked_at)
        if self.ejected and asked_at < self._ejected_at:
            return None  # it was under way already
        self._failed = 0
        self.ejected = False
        if model is not None:
            slow = usual_s is not None and now - asked_at > max(SLOW_S, SLOW_FACTOR * usual_s)
            self._slow = self._slow + 1 if slow else 0
        return self._eject(now, "slow") if self._slow >= SLOW_HEADS else None

    def failed(self, asked_at: float, now: float) -> Reason | None:
        """No head came, or one that says that the upstream cannot serve. Returns why it is ejected, if it is from now on."""
        if self._is_no_probe(asked_at):
            return None
        self._failed += 1
        return self._eject(now, "heads") if self.ejected or self._failed >= CONSECUTIVE_FAILURES else None

    def broke_off(self, asked_at: float, now: float) -> Reason | None:
        """A reply has broken off. Returns why it is ejected, if it is from now on."""
        if self._is_no_probe(asked_at):
            return None
        self._broken += 1
        return self._eject(now, "replies") if self.ejected or self._broken >= CONSECUTIVE_FAILURES else None

    def served(self, asked_at: float) -> None:
        """A reply has ended well."""
        if not self.ejected and asked_at >= self._ejected_at:
            self._broken = 0
            if not self._slow:
                self._ejections = 0

    def _is_no_probe(self, asked_at: float) -> bool:
        """Whether its failure says nothing new: it was under way at the ejection, or asked since because all are ejected.

        Otherwise the time would double with every request of an outage, and not with every look at how it is.
        """
        return self.ejected and asked_at < self._over_at

    def _eject(self, now: float, reason: Reason) -> Reason | None:
        """Eject it, or keep it ejected for longer because the probe has failed."""
        already, self.ejected = self.ejected, True
        self._failed = self._broken = self._slow = 0
        self._ejected_at = now
        self._leased_until = 0.0
        self._over_at = now + min(MAX_EJECTION_S, BASE_EJECTION_S * 2.0 ** min(self._ejections, 10))
        self._ejections += 1
        return None if already else reason


class _Mean:
    """A moving average (EWMA) of seconds, and how many it has seen."""

    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += (seconds - self.seconds) * max(_WEIGHT, 1 / self.count)
