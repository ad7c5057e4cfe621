"""`pii`: masks phone numbers, identity numbers, bank cards and mail addresses, in requests and in replies while they stream.

What is found is said by `kinds` (what a number has to be) and `spans` (where one stands); `masker` has one text masked as it
comes. Nothing of it is logged or counted but how many of which kind were masked.
"""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import Any, ClassVar, Final, Literal

from relay.exchange import Exchange, Key
from relay.plugin import Plugin, Reply, Sink
from relay.pure.request import ChatRequest
from relay.text import Rewrite, TextSink
from relay_plugins.pii.kinds import Kind
from relay_plugins.pii.masker import Masker, Style

MASKED: Final[Key[dict[str, int]]] = Key("pii.masked", dict)
"""How many of each kind have been masked so far in a request and its reply, by kind; nothing for those of which none was."""

# Larger bodies are looked through in a thread, and other streams get their turn.
INLINE_BYTES: Final = 65_536
# Parameters that say who asks: they leave the house too.
_ALSO: Final = ("user", "safety_identifier", "prompt_cache_key", "metadata")
# A place from which something is fetched is no text, nor is what stands for a file.
_FETCHED: Final = frozenset("url image_url file_url file_id file_data data".split())


class Pii(Plugin):
    """Masks personal data in what clients say to models and models to clients.

    kinds: what is masked. `phone` are Chinese mobile numbers, and others with a + before them; `id_number` those of Chinese
    residents; `bank_card` numbers of known issuers with a right check digit. requests, replies: where it is masked.
    style: "label" puts [phone] in its place, "partial" leaves the first and last digits (138****5678).

    With `email` a reply's word of Latin letters or digits is held until it ends, at most 64 characters of it, since an @ may
    follow; without it only what may be the beginning of a number is.
    """

    guards: ClassVar[bool] = True
    gives: ClassVar[tuple[Key[Any], ...]] = (MASKED,)

    kinds: tuple[Literal["phone", "id_number", "bank_card", "email"], ...] = (
        "phone",
        "id_number",
        "bank_card",
        "email",
    )
    requests: bool = True
    replies: bool = True
    style: Style = "label"

    _kinds: frozenset[Kind] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError('kinds is empty; name what is masked, as in kinds = ["phone", "email"], or leave it out')
        if not (self.requests or self.replies):
            raise ValueError("requests and replies are both off; leave one on, or the plugin out")
        self._kinds = frozenset(self.kinds)

    async def on_request(self, ex: Exchange) -> Reply | None:
        if MASKED not in ex:  # another one of its kind may stand before it
            ex[MASKED] = {}
        counts = ex[MASKED]
        if self.requests:
            if len(ex.request.encode()) > INLINE_BYTES:
                await asyncio.to_thread(self._mask, ex.request, counts)
            else:
                self._mask(ex.request, counts)
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return TextSink.each(sink, partial(self._begin, ex[MASKED])) if self.replies else sink

    def _begin(self, counts: dict[str, int], surface: str) -> Rewrite:
        return Masker(self._kinds, self.style, counts, json=surface.endswith(".arguments")).rewrite

    def _mask(self, request: ChatRequest, counts: dict[str, int]) -> None:
        def masked(text: str, key: str) -> str:
            if key in _FETCHED:
                return text
            return Masker(self._kinds, self.style, counts, json=key == "arguments").rewrite(text, True)[0]

        request.change_texts(masked, _ALSO)
