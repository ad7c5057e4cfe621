"""The headers that prove who has sent a body, by the Standard Webhooks specification 1.0.0. Pure: the time is an argument."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

PREFIX: Final = "whsec_"
LEAST_BYTES, MOST_BYTES = 24, 64  # of a key, as the specification says


def key(secret: str) -> bytes:
    """The bytes of a signing key. Raises ValueError with the remedy, and never with the key."""
    remedy = f"signing_key has to be {PREFIX} and {LEAST_BYTES} to {MOST_BYTES} bytes in base64; make one by: "
    remedy += f'echo "{PREFIX}$(openssl rand -base64 32)"'
    try:
        found = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(remedy) from None
    if not secret.startswith(PREFIX) or not LEAST_BYTES <= len(found) <= MOST_BYTES:
        raise ValueError(remedy)
    return found


def headers(key: bytes, message_id: str, now: float, body: bytes) -> dict[str, str]:
    """now: Unix time, in seconds."""
    timestamp = str(int(now))
    signed = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(signed).decode(),
    }
