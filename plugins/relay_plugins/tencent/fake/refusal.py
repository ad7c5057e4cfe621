"""What the service says instead of a verdict: its own error codes, always with HTTP 200."""

from __future__ import annotations


class Refusal(Exception):
    """An error of the service. `code` and `message` go out as they are."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
