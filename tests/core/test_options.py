import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pytest
from msgspec import Meta, field

from relay.options import ConfigError, Context, OptionInfo, Options, Table, build, describe, nearest, suggestion
from relay.secret import Secret

if TYPE_CHECKING:
    from collections import OrderedDict


class Window(Table, frozen=True, kw_only=True):
    first_chars: Annotated[int, Meta(ge=1)] = 32
    max_wait_ms: float = 1200.0
    key: Secret | None = None


class Rule(Table, frozen=True, kw_only=True):
    block: int
    review: int = 50


class Check(Options):
    """What the moderators of these tests are built on."""

    label: str = ""


class Words(Check):
    words: tuple[str, ...]


class Remote(Check):
    secret_key: Secret


class Gate(Options):
    limits: ClassVar[int] = 7

    notice: str
    request: Literal["before", "parallel", "off"] = "before"
    depth: Annotated[int, Meta(ge=1, le=8)] = 2
    rate: float = 1.0
    on: bool = True
    token: Secret | None = None
    files: tuple[Path, ...] = ()
    window: Window = dataclasses.field(default_factory=Window)
    labels: dict[str, Rule] = dataclasses.field(default_factory=dict)
    rules: list[Rule] = dataclasses.field(default_factory=list)
    checks: tuple[Check, ...] = ()
    first: Check | None = None
    raw: dict[str, object] = dataclasses.field(default_factory=dict)
    held: "dict[str, int]" = dataclasses.field(init=False, default_factory=dict)
    task: object = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if self.depth == 8 and not self.on:
            raise ValueError("depth = 8 needs on = true")


class Wider(Gate):
    extra: int = 0


class Widest(Wider):
    notice: str = "a default now"
    last: str


def find(use: str) -> type[Check]:
    known: dict[str, type[Check]] = {"words": Words, "remote": Remote}
    if use not in known:
        raise ConfigError(f"{use!r} is not known")
    return known[use]


CONTEXT = Context(folder=Path("/conf"), environ={"KEY": "sk-1"}, kinds={Check: find})


def gate(**table: object) -> Gate:
    return build(Gate, {"notice": "no", **table}, "plugins[2]", context=CONTEXT)


def problems(table: Mapping[str, object], cls: type[Options] = Gate) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build(cls, table, "plugins[2]", context=CONTEXT)
    return caught.value.problems


# Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "built"),
    [
        ("notice", "不行", "不行"),
        ("request", "off", "off"),
        ("depth", 8, 8),
        ("rate", 2, 2.0),
        ("on", False, False),
        ("files", ["a.txt", "/b.txt"], (Path("/conf/a.txt"), Path("/b.txt"))),
        ("window", {"first_chars": 8}, Window(first_chars=8)),
        ("labels", {"色情": {"block": 80}}, {"色情": Rule(block=80)}),
        ("rules", [{"block": 1}, {"block": 2, "review": 3}], [Rule(block=1), Rule(block=2, review=3)]),
        ("raw", {"any": [1, {"thing": 2.5}]}, {"any": [1, {"thing": 2.5}]}),
    ],
)
def test_value(name: str, value: object, built: object) -> None:
    """A value of TOML becomes a value of the field's type."""
    assert getattr(gate(**{name: value}), name) == built


def test_defaults() -> None:
    """An option left out has the default of its field, and mutable defaults are not shared."""
    one, two = gate(), gate()
    assert (one.request, one.depth, one.window) == ("before", 2, Window())
    assert one.labels is not two.labels


@pytest.mark.parametrize("source", ["sk-1", {"env": "KEY"}])
def test_secret(source: object) -> None:
    """A secret may stand in place or be a reference, also in a nested table."""
    built = gate(token=source, window={"key": source})
    assert built.token
    assert built.window.key
    assert (built.token.reveal(), built.window.key.reveal()) == ("sk-1", "sk-1")
    assert "sk-1" not in repr(built)


def test_nested_use() -> None:
    """A table whose option is of a class of Options is built as the class that its `use` names."""
    built = gate(
        checks=[{"use": "words", "words": ["a"]}, {"use": "remote", "secret_key": "k"}],
        first={"use": "words", "words": []},
    )
    assert [type(check) for check in built.checks] == [Words, Remote]
    assert isinstance(built.checks, tuple)
    assert isinstance(built.first, Words)


def test_use_is_not_an_option() -> None:
    """The table may still hold the `use` that chose its class."""
    assert build(Gate, {"use": "gate", "notice": "x"}, "plugins[0]", context=CONTEXT).notice == "x"


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"use": "gate", "windw": 1}, "plugins[2] (gate): unknown option 'windw'; did you mean 'window'?"),
        ({"Depth": 1}, "plugins[2]: unknown option 'Depth'; did you mean 'depth'?"),
        ({"held": {}}, "plugins[2]: unknown option 'held'; there are 'notice', 'request', 'depth', 'rate', 'on', "
         "'token', 'files', 'window', 'labels', 'rules', 'checks', 'first', 'raw'"),
        ({"depth": "2"}, "plugins[2].depth: Expected `int`, got `str`"),
        ({"depth": True}, "plugins[2].depth: Expected `int`, got `bool`"),
        ({"depth": 2.5}, "plugins[2].depth: Expected `int`, got `float`"),
        ({"depth": 9}, "plugins[2].depth: Expected `int` <= 8"),
        ({"rate": False}, "plugins[2].rate: Expected `float`, got `bool`"),
        ({"on": 1}, "plugins[2].on: Expected `bool`, got `int`"),
        ({"request": "befor"}, "plugins[2].request: unknown value 'befor'; did you mean 'before'?"),
        ({"request": "x"}, "plugins[2].request: unknown value 'x'; there are 'before', 'parallel', 'off'"),
        ({"request": 1}, "plugins[2].request: Expected `str`, got `int`"),
        ({"window": {"first_chars": "x"}}, "plugins[2].window.first_chars: Expected `int`, got `str`"),
        ({"window": {"first_char": 1}}, "plugins[2].window.first_char: unknown key; did you mean 'first_chars'?"),
        ({"window": 3}, "plugins[2].window: Expected `object`, got `int`"),
        ({"files": ["a", 3]}, "plugins[2].files[1]: Expected a path, got `int`"),
        ({"labels": {"Porn": {"block": "80"}}}, "plugins[2].labels.Porn.block: Expected `int`, got `str`"),
        ({"labels": {"色 情": {}}}, 'plugins[2].labels."色 情".block: missing; expected int'),
        ({"rules": [{"block": 1}, {"block": []}]}, "plugins[2].rules[1].block: Expected `int`, got `array`"),
        ({"token": {"env": "NONE"}}, "plugins[2].token: environment variable NONE is not set; set it, or give a string, "
         '{ env = "NAME" } or { file = "path" }'),
        ({"token": 5}, 'plugins[2].token: a secret is a string, { env = "NAME" } or { file = "path" }'),
        ({"depth": 8, "on": False}, "plugins[2]: depth = 8 needs on = true"),
        ({"checks": {}}, "plugins[2].checks: expected an array of tables, each with 'use'"),
        ({"checks": [{}]}, "plugins[2].checks[0]: expected a table that names with 'use' what it configures"),
        ({"checks": ["words"]}, "plugins[2].checks[0]: expected a table that names with 'use' what it configures"),
        ({"checks": [{"use": "wrds"}]}, "plugins[2].checks[0]: 'wrds' is not known"),
        ({"checks": [{"use": "words", "words": [1]}]}, "plugins[2].checks[0].words[0]: Expected `str`, got `int`"),
        ({"checks": [{"use": "words", "words": [], "labl": ""}]},
         "plugins[2].checks[0] (words): unknown option 'labl'; did you mean 'label'?"),
        ({"first": {"use": "remote"}}, "plugins[2].first (remote): option 'secret_key' is missing; expected secret"),
    ],
)  # fmt: skip
def test_refused(table: dict[str, object], problem: str) -> None:
    """A wrong table is refused with its place, the key and what is expected."""
    assert problems({"notice": "no", **table}) == (problem,)


def test_required() -> None:
    """An option without a default must be given."""
    assert problems({}) == ("plugins[2]: option 'notice' is missing; expected str",)


def test_every_problem() -> None:
    """All problems of a table are reported at once, at any depth."""
    found = problems(
        {
            "dept": 1,
            "rate": "x",
            "window": {"first_chars": 0, "max_wait_ms": "x", "foo_bar": 1},
            "checks": [{"use": "remote"}, {"use": "words", "words": 3}],
        }
    )
    assert found == (
        "plugins[2]: unknown option 'dept'; did you mean 'depth'?",
        "plugins[2]: option 'notice' is missing; expected str",
        "plugins[2].rate: Expected `float`, got `str`",
        "plugins[2].window.foo_bar: unknown key; there are 'first_chars', 'max_wait_ms', 'key'",
        "plugins[2].window.first_chars: Expected `int` >= 1",
        "plugins[2].window.max_wait_ms: Expected `float`, got `str`",
        "plugins[2].checks[0] (remote): option 'secret_key' is missing; expected secret",
        "plugins[2].checks[1].words: Expected `array`, got `int`",
    )


def test_error_text() -> None:
    """A ConfigError is its problems, a line each; `at` puts a place before each."""
    error = ConfigError("a: no", "b: no").at("relay.toml")
    assert error.problems == ("relay.toml: a: no", "relay.toml: b: no")
    assert str(error) == "relay.toml: a: no\nrelay.toml: b: no"


def test_unreadable_annotation() -> None:
    """An annotation imported for type checkers only is refused with the remedy, not a NameError."""

    class Lazy(Options):
        cache: "OrderedDict[str, int] | None" = None

    assert "name 'OrderedDict' is not defined" in problems({}, Lazy)[0]
    assert "not only under TYPE_CHECKING" in problems({}, Lazy)[0]


def test_unreadable_type() -> None:
    """A type that no value of TOML can become is named."""

    class Odd(Options):
        number: complex = 0j

    assert problems({"number": 1}, Odd) == ("plugins[2].number: an option cannot be of type <class 'complex'>",)


# Classes --------------------------------------------------------------------------------------


def test_subclassed_twice() -> None:
    """Options are inherited, may be given other defaults, and required ones may follow those with a default."""
    built = build(Widest, {"last": "z", "extra": 4, "depth": 3}, "plugins[0]", context=CONTEXT)
    assert (built.notice, built.extra, built.depth, built.last) == ("a default now", 4, 3, "z")


def test_built_in_one_line() -> None:
    """A class is built directly, by keyword only, and its combinations are checked then too."""
    assert Gate(notice="x", depth=5).depth == 5
    with pytest.raises(TypeError):
        Gate("x")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="depth = 8 needs on"):
        Gate(notice="x", depth=8, on=False)


def test_state_is_not_an_option() -> None:
    """Run-time state and class variables are set, yet neither options nor in the repr."""
    built = Words(words=("a",))
    assert repr(built) == "Words(label='', words=('a',))"
    assert gate().held == {}
    assert {"limits", "held", "task"}.isdisjoint(option.name for option in describe(Gate))


def test_identity() -> None:
    """Two instances with the same options are two plugins, and both can be keys."""
    assert len({Words(words=()), Words(words=())}) == 2


def test_own_init() -> None:
    """A class that defines __init__ is refused when it is made."""
    with pytest.raises(TypeError, match="Mine defines __init__, which its fields make"):
        type("Mine", (Options,), {"__init__": lambda self: None})


def test_option_named_use() -> None:
    """An option called `use` is refused when the class is made."""
    with pytest.raises(TypeError, match="'use', the key that chooses the class"):
        type("Mine", (Options,), {"__annotations__": {"use": str}})


# Words ----------------------------------------------------------------------------------------


def test_describe() -> None:
    """Every option is described by name, type and default, as TOML writes them."""
    assert [
        OptionInfo("notice", "str", "", True),
        OptionInfo("request", '"before" | "parallel" | "off"', '"before"', False),
        OptionInfo("depth", "int ≥ 1 ≤ 8", "2", False),
        OptionInfo("rate", "float", "1.0", False),
        OptionInfo("on", "bool", "true", False),
        OptionInfo("token", "secret", "", False),
        OptionInfo("files", "[path, …]", "[]", False),
        OptionInfo(
            "window",
            "{ first_chars = int ≥ 1, max_wait_ms = float, key = secret }",
            "{ first_chars = 32, max_wait_ms = 1200.0 }",
            False,
        ),
        OptionInfo("labels", "{ name = { block = int, review = int }, … }", "{}", False),
        OptionInfo("rules", "[{ block = int, review = int }, …]", "[]", False),
        OptionInfo("checks", "[{ use = Check, … }, …]", "[]", False),
        OptionInfo("first", "{ use = Check, … }", "", False),
        OptionInfo("raw", "{ name = value, … }", "{}", False),
    ] == describe(Gate)


def test_describe_a_table() -> None:
    """A table's keys are described as a plugin's options are, and a secret default is not shown."""

    class Login(Table, frozen=True, kw_only=True):
        user: str
        models: tuple[str, ...] | dict[str, str] = ("a",)
        path: Path = Path("x")
        password: Secret = field(default_factory=lambda: Secret("hunter2"))

    assert [
        OptionInfo("user", "str", "", True),
        OptionInfo("models", "[str, …] | { name = str, … }", '["a"]', False),
        OptionInfo("path", "path", '"x"', False),
        OptionInfo("password", "secret", "Secret(…)", False),
    ] == describe(Login)


@pytest.mark.parametrize(
    ("word", "near"),
    [("on_requst", "on_request"), ("ON_END", "on_end"), ("onstream", "on_stream"), ("zebra", None), ("", None)],
)
def test_nearest(word: str, near: str | None) -> None:
    """The nearest word is the one meant, whatever its case, or none."""
    assert nearest(word, ["on_request", "on_stream", "on_end"]) == near


def test_suggestion() -> None:
    """A suggestion is the near word, else the words there are."""
    assert suggestion("prot", ["host", "port"]) == "did you mean 'port'?"
    assert suggestion("zzz", ["host", "port"]) == "there are 'host', 'port'"
    assert suggestion("x", []) == "there are none"
