"""What a reply says, kept or digested as it passes; only there where the policy wants it."""

from __future__ import annotations

import hmac
from typing import Final

from relay.plugin import Sink
from relay.pure.openai import Chunk
from relay.reading import IndexUnclearError, Kind, known, read
from relay_plugins.audit.record import Policy, Record, clean, encoded

# A reply has a surface or two for each choice; what else a server invents is counted, and not kept.
MAX_TEXTS: Final = 64


class _Text:
    """One surface of one choice. kept: what is kept of it, in pieces; digest: of all of it."""

    __slots__ = ("bytes", "digest", "kept")

    def __init__(self, digest: hmac.HMAC | None) -> None:
        self.bytes = 0
        self.digest = digest
        self.kept: list[bytes] = []


class Said:
    """A sink that passes everything on, and remembers what was said as far as the policy says.

    whole: the reply is not streamed.
    """

    __slots__ = ("_left", "_others", "_policy", "_sink", "_texts", "_whole", "end")

    def __init__(self, sink: Sink, policy: Policy, *, whole: bool) -> None:
        self._sink = sink
        self._policy = policy
        self._whole = whole
        self._texts: dict[tuple[int | None, str], _Text] = {}
        self._left = policy.max_bytes if policy.text == "full" else 0  # bytes that may still be kept
        self._others = 0  # bytes on surfaces beyond MAX_TEXTS
        self.end = sink.end

    def feed(self, chunk: Chunk) -> None:
        said = chunk.said
        if said is not None:
            self._take(said[0], "content", said[1])
        else:
            self._read(chunk)
        self._sink.feed(chunk)

    def told(self) -> list[Record]:
        """Each text that was said, by its choice and surface, with its length in bytes of UTF-8."""
        told: list[Record] = []
        for (choice, surface), text in self._texts.items():
            shown = known(surface) if text.digest is not None else clean(surface)  # a name can say what a text can
            entry: Record = {"choice": choice, "surface": shown, "bytes": text.bytes}
            if text.digest is not None:
                entry["hmac_sha256"] = text.digest.hexdigest()
            else:
                entry["text"] = b"".join(text.kept).decode("utf-8", "ignore")
            told.append(entry)
        if self._others:
            told.append({"choice": None, "surface": "others", "bytes": self._others})
        return told

    def _read(self, chunk: Chunk) -> None:
        frame = chunk.json
        if frame is None:
            return
        try:
            reading = read(frame, whole=self._whole)
        except IndexUnclearError:
            return  # nobody can say whose text it is; a guard ends the reply for it
        for choice in reading.choices:
            for surface, kind, text in choice.texts:
                if not surface.startswith("logprobs"):  # which say the same again
                    self._take(choice.index, surface, text + "\n" if kind is Kind.NAME else text)
        for surface, _, text in reading.loose:
            self._take(None, surface, text)

    def _take(self, choice: int | None, surface: str, said: str) -> None:
        data = encoded(said)
        text = self._texts.get((choice, surface))
        if text is None:
            if len(self._texts) >= MAX_TEXTS:
                self._others += len(data)
                return
            digest = self._policy.digest() if self._policy.text == "digest" else None
            text = self._texts[choice, surface] = _Text(digest)
        text.bytes += len(data)
        if text.digest is not None:
            text.digest.update(data)
        elif self._left:
            kept = data[: self._left]
            self._left -= len(kept)
            text.kept.append(kept)
