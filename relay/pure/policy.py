"""What the guards of all replies of a chain have in common: what is held, what is dropped, what a violation looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from relay.pure.window import Cutting

OnViolation = Literal["finish", "replace", "error"]
UnknownFields = Literal["check", "drop", "pass"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the guard of every reply of a chain has in common."""

    cutting: Cutting = field(default_factory=Cutting)
    depth: int = 2  # checks in flight for one reply
    held_bytes: int = 262_144
    on_violation: OnViolation = "finish"
    notice: str = ""
    unknown_fields: UnknownFields = "check"
    opaque: Literal["pass", "drop"] = "pass"
    hold: bool = True  # False: nothing is held or cut, everything is measured
