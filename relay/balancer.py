"""Which upstream is asked, in which order, and whether one more may be: priorities, weights, health and a budget."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from relay.config import ANY_MODEL, Upstream
from relay.errors import unsupported_model
from relay.events import NOWHERE, Publisher
from relay.log import Logger
from relay.metrics import Metrics
from relay.pure.health import Health, Reason
from relay.pure.retry import RetryBudget

_NOTHING: Final[Mapping[str, Health]] = MappingProxyType({})


class Balancer:
    """Times are seconds of the loop's clock.

    A request goes to the upstreams that serve its model, lowest priority first, within a priority by weight; those that
    are ejected come after all others, so that somebody is asked even when nobody is well.
    """

    def __init__(
        self,
        configured: Iterable[Upstream],
        metrics: Metrics,
        log: Logger,
        now: float,
        events: Publisher = NOWHERE,
        known: Mapping[str, Health] = _NOTHING,
    ) -> None:
        """known: how upstreams are, as of `health`, that were asked by another balancer."""
        upstreams = sorted(configured, key=lambda upstream: upstream.priority)
        self._serving = {
            model: tuple(u for u in upstreams if model in u.model_map or ANY_MODEL in u.model_map)
            for upstream in upstreams
            for model in upstream.model_map
        }
        self._places = {upstream.name: f"{upstream.name} {upstream.base_url}" for upstream in upstreams}
        self._health = {name: known.get(place) or Health() for name, place in self._places.items()}
        self._budget = RetryBudget(now)
        self._random = random.Random()  # noqa: S311 - it spreads load
        self._metrics = metrics
        self._log = log
        self._events = events

    @property
    def health(self) -> Mapping[str, Health]:
        """How each is, by its name and where it is: one that has moved is another one."""
        return {place: self._health[name] for name, place in self._places.items()}

    @property
    def models(self) -> tuple[str, ...]:
        """The public names, in the order of the file, without "*"."""
        return tuple(model for model in self._serving if model != ANY_MODEL)

    def serving(self, model: str) -> Sequence[Upstream]:
        """Who serves a model. Raises Reject if nobody does."""
        serving = self._serving.get(model) or (self._serving.get(ANY_MODEL, ()) if model else ())
        if not serving:
            raise unsupported_model()
        return serving

    def order(self, model: str, now: float) -> Sequence[Upstream]:
        """Who is to be asked for a model, one after the other. Raises Reject if nobody serves it."""
        self._budget.earn(now)
        serving = self.serving(model)
        if len(serving) == 1:
            return serving
        # Sorting by u^(1/weight) draws without replacement in proportion to the weights (Efraimidis, Spirakis 2006).
        return sorted(
            serving,
            key=lambda u: (not self._health[u.name].ready(now), u.priority, -(self._random.random() ** (1 / u.weight))),
        )

    def may_retry(self, upstream: Upstream, reason: str) -> bool:
        """Whether the next may be asked after `upstream` has failed for `reason`, a word of `retry_on`."""
        if reason not in upstream.retry_on:
            return False
        within = self._budget.spend()
        self._metrics.upstream_retry(upstream.name, "retried" if within else "over_budget")
        return within

    # What becomes of the requests

    def asked(self, upstream: Upstream, now: float) -> None:
        """A request goes to it. What comes of it is told by `answered` or `failed`, or by nobody if its client leaves."""
        health = self._health[upstream.name]
        if health.ejected:
            health.asked(now)

    def answered(self, upstream: Upstream, asked_at: float, now: float, model: str | None = None) -> None:
        """A head has come. How long it took is compared with others that serve `model`, if that is given."""
        health = self._health[upstream.name]
        usual_s = None
        if model is not None:
            serving = self.serving(model)
            model = model if model in self._serving else ANY_MODEL  # clients may make names up
            if len(serving) > 1:
                times = [self._health[other.name].usual_s(model) for other in serving if other is not upstream]
                usual_s = min((usual for usual in times if usual is not None), default=None)
        was_ejected = health.ejected
        reason = health.answered(asked_at, now, model, usual_s)
        if reason is not None:
            self._judge(upstream, reason)
        elif was_ejected and not health.ejected:
            self._metrics.upstream_returned(upstream.name)
            self._log.info("upstream is back", upstream=upstream.name)
            self._events.publish("return", upstream=upstream.name)

    def failed(self, upstream: Upstream, asked_at: float, now: float) -> None:
        """No head has come that could be used."""
        self._judge(upstream, self._health[upstream.name].failed(asked_at, now))

    def broke_off(self, upstream: Upstream, asked_at: float, now: float) -> None:
        """A reply has broken off after its head."""
        self._judge(upstream, self._health[upstream.name].broke_off(asked_at, now))

    def served(self, upstream: Upstream, asked_at: float) -> None:
        """A reply has ended well."""
        self._health[upstream.name].served(asked_at)

    def _judge(self, upstream: Upstream, reason: Reason | None) -> None:
        if reason is not None:
            self._metrics.upstream_ejected(upstream.name, reason)
            self._log.warning("upstream ejected", upstream=upstream.name, reason=reason)
            self._events.publish("ejection", upstream=upstream.name, reason=reason)
