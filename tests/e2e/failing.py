"""A plugin and a moderator that fail in every way, found beside these tests' relay.toml as anybody's would be."""

from relay.errors import Reject
from relay.moderator import PASS, Moderator
from relay.plugin import Plugin


class Refusing(Plugin):
    """Refuses every request with `status` and `code`; without a status it breaks instead."""

    status: int = 0
    code: str = "refused"

    async def on_request(self, ex):
        if not self.status:
            raise ZeroDivisionError("not a RelayError")
        raise Reject("Not today.", code=self.code, status=self.status)


class Broken(Moderator):
    """Breaks on a text that holds `word`."""

    word: str = "ponder"

    async def check(self, text, context):
        if self.word in text:
            raise ZeroDivisionError("no verdict")
        return PASS
