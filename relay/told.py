"""What is known of a request and its reply when both have ended: `ex.told`, for plugins that write it down.

No more than names, numbers and times: nothing that a client or a model has said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Server(NamedTuple):
    """An upstream: its name in relay.toml, and the host and port of its `base_url`."""

    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Call:
    """What an upstream was asked, and what it told. Times as `Exchange.started`.

    server: who was asked last; None: nobody, as the time for it was not there. answered: with a good head; an answer
    may break off behind it. first_at: when the first event of a stream came, or the whole of another answer. ended_at:
    when the last of it had come, or enough. Either is None where there was none.

    id, model: of the answer, as the upstream has them. finish_reasons: by choice. input_tokens, output_tokens: its usage,
    counted by it alone. None, or empty, where it did not tell, or what cannot be.
    """

    server: Server | None
    asked_at: float
    answered: bool
    first_at: float | None
    ended_at: float | None
    id: str | None
    model: str | None
    finish_reasons: Mapping[int, str]
    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True)
class Told:
    """method: of the request. status: of the answer; 0 if there was none before the client left.

    ended_at: when the last byte of it had been handed over, as `Exchange.started`. call: None if no upstream was asked.
    """

    method: str
    status: int
    ended_at: float
    call: Call | None
