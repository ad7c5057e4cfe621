"""From the `use` of a configuration table to a class.

`use` is the name of an entry point, or "module:Class". What the project brings is registered exactly as a stranger's
package would be. A Registry is built when the relay starts and reads the installed distributions once; nothing is
kept in the module, and a class is imported only when it is asked for.
"""

import importlib
from collections.abc import Iterator
from importlib.metadata import entry_points
from traceback import extract_tb
from types import ModuleType
from typing import Generic, NamedTuple, TypeVar

from relay.options import ConfigError, nearest, suggestion

T = TypeVar("T")


class Registered(NamedTuple):
    """An entry point: its name, the distribution that brings it with its version, and "module:Class"."""

    name: str
    distribution: str
    target: str


class Registry(Generic[T]):
    """The classes of one entry point group ("relay.plugins"), each a subclass of `base`."""

    def __init__(self, group: str, base: type[T]) -> None:
        self._group = group
        self._base = base
        self._entries = tuple(sorted(_registered(group)))

    def names(self) -> tuple[Registered, ...]:
        """Everything registered, by name. Nothing is imported."""
        return self._entries

    def find(self, use: str) -> type[T]:
        """The class that `use` names. Raises ConfigError."""
        if ":" in use:
            return self._load(use, use)
        found = [entry for entry in self._entries if entry.name == use]
        if not found:
            known = [entry.name for entry in self._entries]
            near = nearest(use, known)
            raise ConfigError(
                f"{use!r} is not registered in {self._group}; {f'did you mean {near!r}? ' if near else ''}"
                f"registered: {', '.join(known) or 'nothing'}; a class that is not registered is named as module:Class"
            )
        if len(found) > 1:
            claims = " and by ".join(f"{entry.distribution} ({entry.target})" for entry in found)
            raise ConfigError(
                f"{use!r} is registered in {self._group} by {claims}; uninstall one, or name the class as module:Class"
            )
        (entry,) = found
        return self._load(entry.target, f"{use!r} of {entry.distribution}")

    def _load(self, target: str, origin: str) -> type[T]:
        module_name, _, class_name = target.partition(":")
        if not module_name or not class_name:
            raise ConfigError(f"{origin}: {target!r} is not of the form module:Class")
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            # Whatever a stranger's module raises, the operator must see whose it is.
            raise ConfigError(
                f"{origin}: module {module_name} cannot be imported: {type(error).__name__}: {error}{_place(error)}"
            ) from error
        cls = getattr(module, class_name, None)
        if cls is None:
            raise ConfigError(
                f"{origin}: module {module_name} has no {class_name}; {suggestion(class_name, _classes(module))}"
            )
        if not isinstance(cls, type) or not issubclass(cls, self._base):
            raise ConfigError(
                f"{origin}: {target} is not a subclass of {self._base.__module__}.{self._base.__qualname__}"
            )
        return cls


def _place(error: Exception) -> str:
    """Where it was raised, outside of what imports; "" where that is nowhere. What is no Python says so itself."""
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen importlib")]
    own = [frame for frame in frames if frame.filename not in (__file__, importlib.__file__)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own and not isinstance(error, SyntaxError) else ""


def _registered(group: str) -> Iterator[Registered]:
    for point in entry_points(group=group):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "no distribution"
        # An extra in brackets says what else to install; it is no part of the name.
        yield Registered(point.name, distribution, point.value.partition("[")[0].strip())


def _classes(module: ModuleType) -> list[str]:
    return [
        name for name, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
    ]
