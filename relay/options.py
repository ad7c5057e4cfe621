"""A plugin is its configuration: annotated fields in, a checked instance out.

Here live `Options`, the base that turns annotations into options; `build`, which makes an instance of one TOML table;
`describe`, which lists the options; and `ConfigError`, the one error of everything that reads configuration. Nothing
here knows what a plugin or a moderator is, nor which file is read.

How a value is read: msgspec converts it to the field's type in one call. Only when msgspec refuses is the value walked
part by part (`_explain`), to report every problem with its full path instead of the first one. So the walk words
errors; it never decides.

Paths in messages are TOML's: `plugins[2].window.first_chars`. `use` is not an option: it chooses the class.
"""

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, TypeGuard, TypeVar, cast

import msgspec

from relay.secret import Secret

_MSGSPEC_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>[^`]*)`\Z")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")


class ConfigError(Exception):
    """What is wrong with a configuration.

    `problems` holds one sentence for each, naming the key and the remedy; str has a line for each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems

    def at(self, where: str) -> Self:
        """The same problems, found at `where`."""
        return type(self)(*(f"{where}: {problem}" for problem in self.problems))


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a nested table of options.

    A subclass repeats `frozen=True, kw_only=True`: type checkers want the one, msgspec the other.
    """


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class Options:
    """Base of classes whose annotated fields are their options in the configuration.

    A subclass is a keyword-only dataclass, compared by identity. `dataclasses.field(init=False)` is run-time state and
    a ClassVar belongs to the class: neither is an option. `__post_init__` may raise ValueError to refuse a combination
    of options. A field's type is what msgspec converts from TOML, and further: `Secret`; `Path`, relative to the
    configuration file; a `Table` for a nested table; and, alone or in a list or tuple, a class of `Options` whose table
    names with `use` what is built.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            raise TypeError(
                f"{cls.__qualname__} defines __init__, which its fields make; use __post_init__ or a lifespan"
            )
        dataclasses.dataclass(kw_only=True, repr=False, eq=False)(cls)
        if any(field.name == "use" for field in dataclasses.fields(cls)):
            raise TypeError(f"{cls.__qualname__} has a field 'use', the key that chooses the class")

    def __repr__(self) -> str:
        # dataclass's own would show run-time state, and fail before that is set.
        shown = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.init and field.repr
        )
        return f"{type(self).__qualname__}({', '.join(shown)})"


T = TypeVar("T", bound=Options)
S = TypeVar("S", bound=Table)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What values refer to.

    Relative paths start at `folder`, and `{ env = "NAME" }` reads `environ`. `kinds` has, for each class of `Options`
    that may be the type of an option, how the `use` of such a nested table is looked up.
    """

    folder: Path
    environ: Mapping[str, str]
    kinds: Mapping[type[Options], Callable[[str], type[Options]]] = dataclasses.field(default_factory=dict)


class OptionInfo(NamedTuple):
    """One option, in words: `default` is written as in TOML, and empty where there is none."""

    name: str
    type: str
    default: str
    required: bool


def build(cls: type[T], table: Mapping[str, object], where: str, *, context: Context) -> T:
    """An instance of `cls` with the options of `table`, which was found at `where` ("plugins[2]").

    The table may still hold its `use`; messages name it. Raises ConfigError with every problem found.
    """
    head = f"{where} ({table['use']})" if "use" in table else where
    fields = {field.name: field for field in _fields(cls)}
    problems = [
        f"{head}: unknown option {key!r}; {suggestion(key, fields)}"
        for key in table
        if key != "use" and key not in fields
    ]
    values: dict[str, object] = {}
    for field in fields.values():
        if field.name in table:
            try:
                values[field.name] = _convert(table[field.name], field.hint, _join(where, field.name), context)
            except ConfigError as error:
                problems += error.problems
        elif field.required:
            problems.append(
                f"{head}: {field.name!r} is taken for an option; what is none is written as field(init=False)"
                if field.name.startswith("_")
                else f"{head}: option {field.name!r} is missing; expected {_type_text(field.hint)}"
            )
    if problems:
        raise ConfigError(*problems)
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{head}: {error}") from error


def read(cls: type[S], table: Mapping[str, object], *, context: Context) -> S:
    """`table` as a `cls`; paths in messages start at it. Raises ConfigError with every problem found."""
    return cast(S, _convert(table, cls, "", context))


def describe(cls: type[Options] | type[Table]) -> list[OptionInfo]:
    """The options of a class, in the order they are written."""
    return [
        OptionInfo(field.name, _type_text(field.hint), "" if field.required else _toml(field.default()), field.required)
        for field in _fields(cls)
    ]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant, whatever its case."""
    lower = {known.lower(): known for known in words}
    matches = difflib.get_close_matches(word.lower(), lower, n=1)
    return lower[matches[0]] if matches else None


def suggestion(word: str, words: Collection[str]) -> str:
    """The clause that ends "unknown …; ": the word probably meant, else the words there are."""
    if near := nearest(word, words):
        return f"did you mean {near!r}?"
    return f"there are {', '.join(map(repr, words))}" if words else "there are none"


# The fields of both kinds of class ----------------------------------------------------------------


class _Field(NamedTuple):
    name: str
    hint: object
    required: bool
    default: Callable[[], object]


def _fields(cls: type[Options] | type[Table]) -> Iterator[_Field]:
    if issubclass(cls, Table):
        for slot in msgspec.structs.fields(cls):
            yield _Field(
                slot.encode_name,
                slot.type,
                slot.required,
                partial(_default, slot.default, slot.default_factory, msgspec.NODEFAULT),
            )
        return
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{cls.__module__}:{cls.__qualname__}: an annotation cannot be read ({error}); "
            "import that name at run time, not only under TYPE_CHECKING"
        ) from error
    for field in dataclasses.fields(cls):
        if field.init:
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            yield _Field(
                field.name,
                hints[field.name],
                required,
                partial(_default, field.default, field.default_factory, dataclasses.MISSING),
            )


def _default(value: object, factory: object, missing: object) -> object:
    return value if value is not missing or not callable(factory) else factory()


# Reading a value ----------------------------------------------------------------------------------


def _convert(value: object, hint: object, where: str, context: Context) -> object:
    """The value as the type `hint`. Raises ConfigError with every problem found."""
    bare = _bare(hint)
    if _is_options(bare):
        return _chosen(bare, value, where, context)
    item, *_ = typing.get_args(bare) or (None,)
    if typing.get_origin(bare) in (list, tuple) and _is_options(item):
        return _each_chosen(item, value, where, context, tuple if typing.get_origin(bare) is tuple else list)
    try:
        return msgspec.convert(value, hint, dec_hook=partial(_foreign, context=context))
    except msgspec.ValidationError:
        raise ConfigError(*_explain(value, hint, where, context)) from None


def _chosen(base: type[Options], value: object, where: str, context: Context) -> Options:
    """The instance that a nested table describes, of the class its `use` names."""
    if not isinstance(value, dict) or not isinstance(use := value.get("use"), str):
        raise ConfigError(f"{where}: expected a table that names with 'use' what it configures")
    try:
        found = context.kinds[base](use)
    except ConfigError as error:
        raise error.at(where) from error
    return build(found, value, where, context=context)


def _each_chosen(
    base: type[Options],
    value: object,
    where: str,
    context: Context,
    sequence: type[list[Options] | tuple[Options, ...]],
) -> object:
    if not isinstance(value, list):
        raise ConfigError(f"{where}: expected an array of tables, each with 'use'")
    built: list[Options] = []
    problems: list[str] = []
    for index, item in enumerate(value):
        try:
            built.append(_chosen(base, item, f"{where}[{index}]", context))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return sequence(built)


def _foreign(hint: type, value: object, *, context: Context) -> object:
    """The types msgspec does not know. Its ValueErrors get their path from msgspec."""
    if hint is Secret:
        return Secret.read(value, context.folder, context.environ)
    if hint is Path:
        if not isinstance(value, str):
            raise ValueError(f"Expected a path, got `{type(value).__name__}`")
        return context.folder / value
    if hint is object:
        return value
    raise TypeError(f"an option cannot be of type {hint!r}")


def _explain(value: object, hint: object, where: str, context: Context) -> list[str]:
    """What is wrong with a value that msgspec refused: the problems of its parts, else its own."""
    bare = _bare(hint)
    arguments = typing.get_args(bare)
    problems: list[str] = []
    parts: list[tuple[object, object, str]] = []
    match value:
        case dict() if _is_table(bare):
            fields = {field.name: field for field in _fields(bare)}
            problems += [
                f"{_join(where, key)}: unknown key; {suggestion(key, fields)}" for key in value if key not in fields
            ]
            problems += [
                f"{_join(where, field.name)}: missing; expected {_type_text(field.hint)}"
                for field in fields.values()
                if field.required and field.name not in value
            ]
            parts = [(part, fields[key].hint, _join(where, key)) for key, part in value.items() if key in fields]
        case dict() if typing.get_origin(bare) is dict:
            parts = [(part, arguments[1], _join(where, key)) for key, part in value.items()]
        case list() if typing.get_origin(bare) is list or arguments[1:] == (...,):
            parts = [(part, arguments[0], f"{where}[{index}]") for index, part in enumerate(value)]
    for part in parts:
        problems += _explain(*part, context)
    return problems or _own_problem(value, hint, where, context)


def _own_problem(value: object, hint: object, where: str, context: Context) -> list[str]:
    try:
        msgspec.convert(value, hint, dec_hook=partial(_foreign, context=context))
    except msgspec.ValidationError as error:
        bare = _bare(hint)
        if typing.get_origin(bare) is typing.Literal and isinstance(value, str):
            return [f"{where}: unknown value {value!r}; {suggestion(value, typing.get_args(bare))}"]
        message = str(error)
        if found := _MSGSPEC_PATH.search(message):
            message, where = message[: found.start()], where + found["path"]
        return [f"{where}: {message}" if where else message]
    return []


def _join(where: str, key: str) -> str:
    shown = key if _BARE_KEY.match(key) else json.dumps(key, ensure_ascii=False)
    return f"{where}.{shown}" if where else shown


def _bare(hint: object) -> object:
    """The type without its constraints and its None; TOML has no null."""
    if typing.get_origin(hint) is typing.Annotated:
        return _bare(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return _bare(kinds[0]) if len(kinds) == 1 else hint
    return hint


def _is_table(hint: object) -> TypeGuard[type[Table]]:
    return isinstance(hint, type) and issubclass(hint, Table)


def _is_options(hint: object) -> TypeGuard[type[Options]]:
    return isinstance(hint, type) and issubclass(hint, Options)


# Types and defaults in words ----------------------------------------------------------------------

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_WORDS: dict[object, str] = {Secret: "secret", Path: "path", object: "value"}


def _type_text(hint: object) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [
            f" {sign} {bound}"
            for meta in arguments[1:]
            for name, sign in _BOUNDS.items()
            if (bound := getattr(meta, name, None)) is not None
        ]
        return _type_text(arguments[0]) + "".join(bounds)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_text(kind) for kind in arguments if kind is not types.NoneType)
    if origin is typing.Literal:
        return " | ".join(map(_toml, arguments))
    if origin in (list, tuple):
        return f"[{_type_text(arguments[0])}, …]"
    if origin is dict:
        return f"{{ name = {_type_text(arguments[1])}, … }}"
    if _is_table(hint):
        return f"{{ {', '.join(f'{field.name} = {_type_text(field.hint)}' for field in _fields(hint))} }}"
    if _is_options(hint):
        return f"{{ use = {hint.__name__}, … }}"
    return _WORDS.get(hint) or str(getattr(hint, "__name__", hint))


def _toml(value: object) -> str:
    """A default as TOML writes it; "" for None, which TOML cannot write."""
    match value:
        case None:
            return ""
        case Table():
            return _toml({field.name: getattr(value, field.name) for field in _fields(type(value))})
        case dict():
            inner = ", ".join(f"{_join('', key)} = {_toml(part)}" for key, part in value.items() if part is not None)
            return f"{{ {inner} }}" if inner else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Secret() | Options():
            return repr(value)
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            return json.dumps(str(value), ensure_ascii=False)
