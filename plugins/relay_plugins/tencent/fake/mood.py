"""How a call goes before anybody looks at its text: how long it takes, and whether it fails.

Drawn from a generator with a seed, so that two runs with the same calls in the same order go the same way. Pure.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Final

from relay_plugins.tencent.fake.settings import Settings

_Z99: Final = 2.3263478740408408  # the 99th percentile of the normal distribution, in standard deviations


class Mood:
    """Draws times and failures.

    upcoming: how the next calls go, before anything is drawn: "" for well, else as in `Settings.errors`.
    """

    def __init__(self, seed: int) -> None:
        self.upcoming: deque[str] = deque()
        self._random = random.Random(seed)  # noqa: S311 — it is to be the same every time

    def latency_s(self, settings: Settings) -> float:
        """How long the verdict takes."""
        if settings.outage == "slow":
            return settings.slow_ms / 1000
        if not settings.p50_ms:
            return 0.0
        spread = math.log(max(settings.p99_ms, settings.p50_ms) / settings.p50_ms) / _Z99
        return self._random.lognormvariate(math.log(settings.p50_ms / 1000), spread)

    def failure(self, settings: Settings) -> str:
        """How the call fails; "" if it does not."""
        if self.upcoming:
            return self.upcoming.popleft()
        if not settings.error_share or self._random.random() >= settings.error_share:
            return ""
        kinds = {kind: weight for kind, weight in settings.errors.items() if weight}
        return self._random.choices(list(kinds), list(kinds.values()))[0] if kinds else ""
