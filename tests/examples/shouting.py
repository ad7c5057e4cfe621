from relay import Moderator, Verdict
from relay.moderator import Context


class Shouting(Moderator):
    """Blocks text in capitals. A service is asked in the same place: `check` may wait."""

    labels = frozenset({"shouting"})

    least_chars: int = 8

    async def check(self, text: str, context: Context) -> Verdict:
        if len(text) >= self.least_chars and text.isupper():
            return Verdict("block", "shouting", 90)
        return Verdict("pass")
