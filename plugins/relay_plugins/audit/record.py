"""What is written down of an exchange, by the operator's policy for texts. Nothing here waits."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, Literal

import orjson

from relay.exchange import CALLER, STOPPED_BY, VIOLATIONS, Exchange
from relay.pure.request import ChatRequest
from relay.reading import load_exactly
from relay.secret import Secret

Record = dict[str, Any]
Keep = Literal["none", "digest", "full"]

MAX_NAME_CHARS: Final = 64  # of a model or a label, as in the log
MAX_USER_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept of texts, and of the request's `user`. max_bytes: of a prompt, and of a reply, in UTF-8."""

    text: Keep = "none"
    user: Keep = "none"
    key: Secret | None = None
    max_bytes: int = 65_536

    def digest(self) -> hmac.HMAC:
        """A digest to be fed, under the key as it is now."""
        assert self.key is not None, "the options see to it"
        return hmac.new(self.key.reveal().encode(), digestmod=hashlib.sha256)


def stamp(at: float) -> str:
    """Unix time as UTC of ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record(ex: Exchange, policy: Policy, said: list[Record] | None) -> Record:
    """said: what the reply said, as `Said.told` has it; None if that is not kept, or there was none."""
    took_s = monotonic() - ex.started
    outcome, request = ex.outcome, ex.loaded
    error = outcome.error if outcome is not None else None
    moderator, label = ex.get(STOPPED_BY, ("", ""))
    told = ex.told
    made: Record = {
        "kind": "exchange",
        "time": stamp(time.time() - took_s),
        "request_id": ex.id,
        "operation": ex.operation,
        "caller": ex.get(CALLER, "") or None,
        "chain": ex.chain or None,
        "model": clean(request.model) if request is not None else None,
        "stream": request.stream if request is not None else None,
        "outcome": outcome.kind if outcome is not None else None,
        "status": told.status or None,
        "code": _named(error.code) if error is not None else None,
        "stopped_by": _named(moderator),
        "label": _named(label),
        "verdicts": [
            {
                "direction": found.direction,
                "choice": found.choice,
                "surface": clean(found.surface),
                "moderator": found.moderator,
                "action": found.action,
                "label": clean(found.label),
                "score": found.score,
                "reference": clean(found.reference) or None,
            }
            for found in ex.get(VIOLATIONS, [])
        ],
        "prompt_tokens": told.call.input_tokens if told.call is not None else None,
        "completion_tokens": told.call.output_tokens if told.call is not None else None,
        "duration_ms": round(1000 * took_s, 1),
        "moderation_ms": round(1000 * ex.moderated_s, 1) if ex.moderated_s is not None else None,
    }
    if request is not None:
        if policy.user != "none":
            made["user"] = _user(request.get("user"), policy)
        if policy.text != "none":
            made["prompt"] = _prompt(request, policy)
    if said is not None:
        made["reply"] = said
    return made


def remainder(ex: Exchange, error: Exception) -> Record:
    """What can be said of an exchange whose record cannot be made, as when a plugin has left there what is no text."""
    return {
        "kind": "exchange",
        "time": stamp(time.time() - (monotonic() - ex.started)),
        "request_id": ex.id,
        "operation": ex.operation,
        "outcome": ex.outcome.kind if ex.outcome is not None else None,
        "status": ex.told.status or None,
        "incomplete": type(error).__name__,
    }


def _named(name: object) -> str | None:
    """A name that a plugin gave, if it did."""
    return clean(name) if name else None


def _user(user: object, policy: Policy) -> Record | str | None:
    if not isinstance(user, str):
        return None
    if policy.user == "full":
        return encoded(user[:MAX_USER_CHARS]).decode()
    digest = policy.digest()
    digest.update(encoded(user))
    return {"hmac_sha256": digest.hexdigest()}


def _prompt(request: ChatRequest, policy: Policy) -> Record:
    """The messages as they were at the end: as an upstream had them, if one did."""
    text = canonical(_exact(request))
    if policy.text == "full":
        return {"text": text[: policy.max_bytes].decode("utf-8", "ignore"), "bytes": len(text)}
    digest = policy.digest()
    digest.update(text)
    return {"hmac_sha256": digest.hexdigest(), "bytes": len(text)}


def _exact(request: ChatRequest) -> list[Any]:
    """The messages as they went on, their integers with all digits, of which those that were parsed have lost some."""
    if _is_exact(request.messages):
        return request.messages
    messages: list[Any] = load_exactly(request.encode())["messages"]
    return messages


def _is_exact(value: object) -> bool:
    """Whether no number in it can have been an integer of more than 64 bits, or be written in two ways."""
    if isinstance(value, dict):
        return all(map(_is_exact, value.values()))
    return all(map(_is_exact, value)) if isinstance(value, list) else not isinstance(value, float)


def canonical(value: object) -> bytes:
    """Compact JSON with sorted keys: what `json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))` gives,
    in UTF-8, with a question mark for each half of a surrogate pair.
    """
    if _is_exact(value):  # else orjson writes 1e-7 where Python has 1e-07
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except TypeError:  # halves of surrogate pairs, integers of more than 64 bits
            pass
    return encoded(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")))


def encoded(text: str) -> bytes:
    """UTF-8, with a question mark for each half of a surrogate pair."""
    return text.encode("utf-8", "replace")


def clean(name: object) -> str:
    """A name that somebody else gave, as far as it is one, and as JSON can say it."""
    text = str(name)[:MAX_NAME_CHARS]  # a moderator may have given anything
    return text if text.isascii() else encoded(text).decode()
