"""A client's key: as plugins see it, as an operator writes it, and as it is shown. Never the secret itself.

Keys of the configuration have a name and nothing more. Those of the store are made by an operator (`relay keys create`,
`POST /admin/keys`) and carry what is theirs alone: an end, models, limits, labels. A key is its name; the secret by which
a client proves to have it may be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from relay.exchange import Key

MAX_LABELS: Final = 32
MAX_MODELS: Final = 128

# What Lua's numbers hold exactly.
Count = Annotated[int, Meta(ge=1, le=2**53 - 1)]
Model = Annotated[str, Meta(min_length=1, max_length=128)]
Label = Annotated[str, Meta(min_length=1, max_length=64)]
LabelValue = Annotated[str, Meta(min_length=1, max_length=256)]
Moment = Annotated[datetime, Meta(tz=True, description="With its time zone, as in 2030-12-31T23:59:59Z.")]
Models = Annotated[tuple[Model, ...], Meta(min_length=1, max_length=MAX_MODELS)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What holds for one key in place of what `rate_limit` says for all; None: that."""

    requests_per_minute: Count | None = None
    burst: Count | None = None
    tokens_per_minute: Count | None = None
    characters_per_minute: Count | None = None
    concurrent_streams: Count | None = None


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key that is let in.

    name: under which logs, limits and quotas know it; it outlives the secret, which may be rotated.
    models: those that it may ask; None: all. labels: the operator's, for the operator.
    """

    name: str
    models: tuple[str, ...] | None = None
    limits: Limits = Limits()
    labels: dict[str, str] = {}

    def may_ask(self, model: str) -> bool:
        return self.models is None or model in self.models


API_KEY: Final = Key("api_key", ApiKey)
"""The key that the request came with. Given by `auth`."""


# What an operator says of a key


class NewKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A key to be made. models: those that it may ask; null: all. limits: in place of what `rate_limit` says for all."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    expires_at: Moment | None = None
    models: Models | None = None
    limits: Limits = Limits()
    labels: Annotated[dict[Label, LabelValue], Meta(max_length=MAX_LABELS)] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problem := name_problem(self.name):
            raise ValueError(problem)
        _check_words(self.models or (), self.labels.items())


class LimitsChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Limits to be changed: a number sets one, null takes it away, and those that are not named stay."""

    requests_per_minute: Count | UnsetType | None = UNSET
    burst: Count | UnsetType | None = UNSET
    tokens_per_minute: Count | UnsetType | None = UNSET
    characters_per_minute: Count | UnsetType | None = UNSET
    concurrent_streams: Count | UnsetType | None = UNSET


class KeyChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A JSON Merge Patch (RFC 7396) of a key: what is not named stays, null takes away, `models` is replaced as a whole.

    Limits and labels change one by one, so two changes at the same time lose nothing of each other.
    """

    disabled: bool | UnsetType = UNSET
    expires_at: Moment | UnsetType | None = UNSET
    models: Models | UnsetType | None = UNSET
    limits: LimitsChange | UnsetType | None = UNSET
    labels: Annotated[dict[Label, LabelValue | None], Meta(max_length=MAX_LABELS)] | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        labels = self.labels.items() if isinstance(self.labels, dict) else ()
        _check_words(self.models if isinstance(self.models, tuple) else (), labels)


# What an operator is shown


class SecretView(msgspec.Struct, frozen=True, kw_only=True):
    """A secret of a key. hint: its head and tail. ends_at: when it stops working, apart from its key's end."""

    hint: str
    created_at: Moment
    ends_at: Moment | None


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the store as it stands. secrets: the latest first."""

    name: str
    state: Literal["active", "disabled", "expired"]
    created_at: Moment
    expires_at: Moment | None
    models: tuple[str, ...] | None
    limits: Limits
    labels: dict[str, str]
    secrets: tuple[SecretView, ...]


def name_problem(name: str) -> str | None:
    """What keeps this from being the name of a key, in one sentence."""
    if not 1 <= len(name) <= 64:
        return "a name has 1 to 64 characters"
    if not is_readable(name):
        return "a name has no control characters, nor others that cannot be seen"
    if name != name.strip():
        return "a name neither begins nor ends with a space"
    if name in (".", ".."):
        return "a name is not . or .., which paths take for something else"
    return None


def is_readable(text: str) -> bool:
    """Whether it spoils neither a table nor a terminal."""
    return text.isprintable()


def _check_words(models: Iterable[str], labels: Iterable[tuple[str, str | None]]) -> None:
    """Raises ValueError for what cannot be read."""
    for model in models:
        if not is_readable(model):
            raise ValueError("the name of a model has no control characters, nor others that cannot be seen")
    for label, value in labels:
        if not is_readable(label) or not is_readable(value or ""):
            raise ValueError("labels have no control characters, nor others that cannot be seen")
