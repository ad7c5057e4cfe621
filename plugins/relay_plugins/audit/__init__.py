"""`audit`: an append-only record of every exchange: who asked, what was found, what it took; of texts only what is wished.

A record (`record`) is put into a queue (`writer`) whose thread appends it to a file of this process's own (`file`), where
each line holds the hash of the one before it. `python -m relay_plugins.audit PATH…` verifies files (`verify`).

It stands first in relay.toml: then it sees whom every other plugin has turned away, its end comes when those of all others
have, and the text that it sees of a reply is what the client gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from relay.errors import Unavailable
from relay.exchange import Exchange, Key, Operation
from relay.options import ConfigError
from relay.plugin import OPERATIONS, Plugin, Reply, Services, Sink
from relay.secret import Secret
from relay_plugins.audit.file import AuditFile
from relay_plugins.audit.record import Policy, record, remainder
from relay_plugins.audit.said import Said
from relay_plugins.audit.writer import Writer

LEAST_KEY_CHARS = 16


class Audit(Plugin):
    """Writes down every exchange: a JSON line in an append-only file, with the hash of the line before it.

    To stand first, so that it sees whom the others turn away. `python -m relay_plugins.audit FOLDER` verifies what is there.

    folder: where each process has files of its own; "audit" where the relay keeps its data, if it is left out.
    text: what is kept of prompts and replies: nothing, an HMAC-SHA256 with `digest_key` by which a disputed text can be proven,
    or the text itself, of each at most max_text_kb. user: the same for the request's `user`.
    on_failure: while nothing can be written, requests are refused ("closed") or served, and what was lost is counted ("open").
    max_file_mb: a file that is longer is closed and another one begun, as at the first record of each day (UTC).
    """

    folder: Path | None = None
    text: Literal["none", "digest", "full"] = "none"
    user: Literal["none", "digest", "full"] = "none"
    digest_key: Secret | None = None
    max_text_kb: Annotated[int, Meta(ge=1, le=1024)] = 64
    on_failure: Literal["closed", "open"] = "closed"
    max_file_mb: Annotated[int, Meta(ge=1, le=10_000)] = 100

    guards: ClassVar[bool] = True
    serves: ClassVar[frozenset[Operation]] = frozenset(OPERATIONS)

    _policy: Policy = dataclasses.field(init=False)
    _said: Key[Said] = dataclasses.field(init=False)
    _writer: Writer = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        digests = "digest" in (self.text, self.user)
        if digests and self.digest_key is None:
            raise ValueError('"digest" needs a digest_key = { file = "…" }: without one short texts could be guessed')
        if self.digest_key is not None:
            if not digests:
                raise ValueError('digest_key is used by text = "digest" and user = "digest" alone; leave it out')
            if len(self.digest_key.reveal()) < LEAST_KEY_CHARS:
                raise ValueError(
                    f"digest_key is shorter than {LEAST_KEY_CHARS} characters; make one by: openssl rand -hex 32"
                )
        self._policy = Policy(self.text, self.user, self.digest_key, self.max_text_kb * 1024)
        self._said = Key("audit.said", Said)

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        folder = self.folder if self.folder is not None else services.data / "audit"
        file = AuditFile(folder, self.max_file_mb * 1024 * 1024)
        writer = Writer(file, services.log)
        try:
            await writer.open()
        except OSError as error:
            raise ConfigError(
                f"audit: no file can be written in {folder} ({error.strerror}); make the folder writable, or name another one as `folder`"
            ) from None
        async with writer as self._writer:
            yield

    async def on_request(self, ex: Exchange) -> Reply | None:
        if self.on_failure == "closed" and not self._writer.sound:
            raise Unavailable(
                "What is asked here has to be recorded, and cannot be now; ask again later.",
                code="audit_unavailable",
                headers={"Retry-After": "1"},
            )
        ex.needs_usage = True
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        if self.text == "none":
            return sink
        said = ex[self._said] = Said(sink, self._policy, whole=not ex.request.stream)
        return said

    async def on_end(self, ex: Exchange) -> None:
        said = ex[self._said].told() if self._said in ex else None
        try:
            self._writer.put(record(ex, self._policy, said))
        except Exception as error:
            self._writer.put(remainder(ex, error))
            raise  # the log tells of it
