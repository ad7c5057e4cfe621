from relay import CALLER, Exchange, Key, Plugin, Reply

STARTED = Key("signs.started", float)


class Signs(Plugin):
    """Signs requests with the name of their key, says so in the reply, and writes down how each ended."""

    needs = (CALLER,)
    gives = (STARTED,)  # later plugins may need it

    header: str = "x-signed"

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex[STARTED] = ex.loop.time()
        ex.request.set("user", ex[CALLER])
        ex.reply_headers[self.header] = ex[CALLER]
        return None

    async def on_end(self, ex: Exchange) -> None:
        took_s = ex.loop.time() - ex[STARTED]
        print(ex.id, ex.outcome.kind if ex.outcome else "", f"{took_s:.3f}")
