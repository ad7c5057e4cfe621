"""What one request costs so far, what is covered of it, and what will be charged in the end."""

from __future__ import annotations

from typing import Final

from relay.exchange import Exchange, Outcome
from relay.pure.meter import Count, Reported
from relay.pure.request import ChatRequest
from relay.pure.tokens import Calibration
from relay_plugins.quota.tariff import Tariff

# Of this key's own making, so what was bought for it is charged although nothing could be shown.
_OWN_DOING: Final = frozenset({"completed", "filtered", "exhausted", "client_gone"})


class Bill:
    """The bill of one request. Sizes are characters or tokens, all else is units of the quota.

    account, id: in the ledger. covered: what the reservation pays for. count: what the reply has said so far.
    """

    __slots__ = ("_messages", "_prompts", "_replies", "account", "count", "covered", "id", "model", "prompt", "tariff")

    def __init__(self, ex: Exchange, account: str, tariff: Tariff, prompts: Calibration, replies: Calibration) -> None:
        """prompts, replies: what is known of how models count tokens."""
        self.account = account
        self.id = ex.id
        self.tariff = tariff
        self.model = ex.request.model
        self.count = Count()
        self.covered = 0
        self._prompts = prompts
        self._replies = replies
        self._messages: object = None
        self.prompt = 0.0
        self.weigh(ex.request)

    def weigh(self, request: ChatRequest) -> None:
        """Take the prompt's size; once more if a later plugin has changed it."""
        if request.messages is not self._messages:
            self._messages = request.messages
            self.prompt = self.tariff.prompt_size(request, self._prompts.factor(self.model))

    @property
    def spent(self) -> int:
        """For the prompt, and what has been released of the reply."""
        return self.with_more(0)

    def with_more(self, size: float) -> int:
        """`spent` if so much more is released."""
        return self.tariff.cost(self.prompt, self.reply + size)

    @property
    def reply(self) -> float:
        """The size of what has been released."""
        return self.tariff.reply_size(self.count, self._replies.factor(self.model))

    @property
    def reported(self) -> Reported | None:
        """What the upstream says that it took, if that is what the unit counts."""
        return None if self.tariff.unit == "characters" else self.count.reported

    def sure_of(self, units: int) -> int:
        """How many characters the reply may surely have in all, so that `spent` is not more than `units`."""
        factor = self._replies.factor(self.model)
        left = self.tariff.room(self.prompt, units) - self.reply
        return self.count.characters + self.tariff.surely(left, factor)

    def amount(self, outcome: Outcome, *, asked: bool) -> int:
        """What to charge for a request that has ended so.

        Text that was released is paid for, with the prompt that it took, whatever happened then. Where nothing was: an
        error that is ours or the upstream's costs nothing; who left, or asked for what had to be stopped, pays for the
        prompt if an upstream had it. Of a reply that came whole the upstream's own count is taken, where that is what
        the unit counts.
        """
        reported = self.reported if outcome.kind == "completed" else None
        if not self.count.characters and reported is None and not self._is_own_doing(outcome, asked):
            return 0
        if reported is not None:
            return self.tariff.cost(reported.prompt, reported.completion)
        return self.spent

    def _is_own_doing(self, outcome: Outcome, asked: bool) -> bool:
        if outcome.error is not None:
            return asked and outcome.error.code == "content_filter"
        return asked and outcome.kind in _OWN_DOING

    def learn(self) -> None:
        """Keep in mind how the upstream's count differs from ours, if it has told one."""
        if (reported := self.reported) is not None:
            factor = self._prompts.factor(self.model)
            self._prompts.learn(self.model, self.prompt / factor, reported.prompt)
            self._replies.learn(self.model, self.count.estimated_tokens, reported.completion)
