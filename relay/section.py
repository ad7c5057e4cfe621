"""A run of plugins that requests meet one after the other: the part of a chain that all of them meet, or a branch of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relay.exchange import Operation
from relay.match import Match
from relay.plugin import HOOKS, OPERATIONS, Plugin


class Link:
    """A plugin under the name that it has in this chain. place: where it stands in the configuration, for messages.

    on_request, on_stream, on_end: its hooks; None for one that it does not override. budget_s: of `on_request`.
    """

    __slots__ = ("budget_s", "name", "on_end", "on_request", "on_stream", "place", "plugin")

    def __init__(self, name: str, plugin: Plugin, place: str = "") -> None:
        self.name = name
        self.plugin = plugin
        self.place = place
        self.budget_s = plugin.budget_ms / 1000
        self.on_request = plugin.on_request if self.overrides("on_request") else None
        self.on_stream = plugin.on_stream if self.overrides("on_stream") else None
        self.on_end = plugin.on_end if self.overrides("on_end") else None

    def overrides(self, hook: str) -> bool:
        return getattr(type(self.plugin), hook) is not getattr(Plugin, hook)

    def takes_part(self, operation: Operation) -> bool:
        """Whether a request of this kind is shown to it."""
        return operation in self.plugin.serves and any(map(self.overrides, ("on_request", "on_stream", "on_end")))


class Section:
    """Plugins, and for each operation those of them that it meets.

    name, match: of a branch, and the requests that it is for; None: for all that no branch before it takes.
    taking_part: by operation, the links that are shown a request.
    """

    __slots__ = ("links", "match", "name", "taking_part")

    def __init__(
        self,
        plugins: Iterable[tuple[str, Plugin]],
        places: Sequence[str] = (),
        *,
        name: str = "",
        match: Match | None = None,
    ) -> None:
        plugins = tuple(plugins)
        self.name = name
        self.match = match
        self.links = tuple(
            Link(known_as, plugin, place)
            for (known_as, plugin), place in zip(plugins, places or [""] * len(plugins), strict=True)
        )
        self.taking_part: dict[Operation, tuple[Link, ...]] = {
            operation: tuple(link for link in self.links if link.takes_part(operation)) for operation in OPERATIONS
        }


def hooks(link: Link) -> tuple[str, ...]:
    """The hooks that a plugin has, for `relay check`."""
    return tuple(hook for hook in HOOKS if link.overrides(hook))
