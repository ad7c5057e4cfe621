import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from relay.config import Admin, Config, ConfigError, Server, Store, Upstream, load, parse
from relay.options import Table, describe

UPSTREAM = '[[upstreams]]\nname = "main"\nbase_url = "http://127.0.0.1:9001/v1"\nmodels = ["a"]\n'
PATH = Path("/conf/relay.toml")

# The whole contract, as an operator would write it.
WHOLE = """
[server]
host = "127.0.0.1"
port = 8080
workers = 1
shutdown_delay_s = 0
drain_s = 30
max_body_bytes = 2097152
body_timeout_s = 30
idle_timeout_s = 75
stall_timeout_s = 60
keepalive_s = 10
cors_origins = []

[admin]
host = "127.0.0.1"
port = 8081
token = { env = "RELAY_ADMIN_TOKEN" }

[store]
url = "embedded:"
prefix = "relay"
timeout_ms = 50
data_dir = "relay-data"

[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:9001/v1"
api_key = { env = "UPSTREAM_API_KEY" }
models = ["gpt-3.5-turbo", "gpt-4"]
weight = 1
priority = 0
connect_timeout_s = 5.0
first_byte_timeout_s = 60.0
idle_timeout_s = 60.0
retry_on = ["connect", "429", "503"]
usage = "inject"

[[plugins]]
use = "auth"
keys = [{ name = "demo", key = "sk-demo" }]

[[plugins]]
use = "moderation"
moderators = [{ use = "lexicon", words = ["x"] }]
"""
ENVIRON = {"RELAY_ADMIN_TOKEN": "t-1", "UPSTREAM_API_KEY": "sk-1"}


def written(document: str, environ: dict[str, str] | None = None) -> Config:
    return parse(document, PATH, environ or {})


def problems(document: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        written(document)
    # Which line it is about: tests/pure/test_toml_line.py.
    file = re.compile(rf"{PATH}(:[0-9]+)?: ")
    assert all(file.match(problem) for problem in caught.value.problems)
    return tuple(file.sub("", problem, count=1) for problem in caught.value.problems)


def upstream(extra: str = "", **changes: str) -> str:
    """An [[upstreams]] table with some of its values changed, each in TOML."""
    values = {"name": '"main"', "base_url": '"http://u/v1"', "models": '["a"]', **changes}
    return "[[upstreams]]\n" + "\n".join(f"{key} = {value}" for key, value in values.items()) + f"\n{extra}"


# What the file says ---------------------------------------------------------------------------


def test_whole_contract() -> None:
    """Every field of the contract is read, and what the contract gives as a default is the default."""
    whole, least = written(WHOLE, ENVIRON), written(UPSTREAM)
    assert whole.server == least.server == Server()
    assert (least.admin.host, least.admin.port) == ("127.0.0.1", 8081)
    assert (whole.store.url.reveal(), least.store.url.reveal()) == ("embedded:", "embedded:")
    assert whole.admin.token
    assert whole.upstreams[0].api_key
    assert (whole.admin.token.reveal(), whole.upstreams[0].api_key.reveal()) == ("t-1", "sk-1")
    plain = msgspec.structs.replace(whole.upstreams[0], api_key=None, models=("a",))
    assert plain == least.upstreams[0]
    assert tuple(table["use"] for table in whole.plugins) == ("auth", "moderation")
    assert least.plugins == ()


def test_contract_fields() -> None:
    """The tables hold the contract's fields and no other."""
    document = tomllib.loads(WHOLE)
    tables: list[tuple[type[Table], dict[str, object]]] = [
        (Server, document["server"]),
        (Admin, document["admin"]),
        (Store, document["store"]),
        (Upstream, document["upstreams"][0]),
    ]
    for cls, table in tables:
        assert list(table) == [option.name for option in describe(cls)]


def test_plugin_tables_are_raw() -> None:
    """A plugin's table is handed on as it was written."""
    assert written(WHOLE, ENVIRON).plugins[1] == {
        "use": "moderation",
        "moderators": [{"use": "lexicon", "words": ["x"]}],
    }


def test_folder() -> None:
    """The configuration knows its file and the folder that relative paths start from."""
    config = written(UPSTREAM)
    assert (config.path, config.folder) == (PATH, Path("/conf"))


def test_no_secret_is_shown() -> None:
    """The repr of a configuration shows no secret, nor the password of a store's URL."""
    text = '[store]\nurl = "redis://:hunter2@h"\n[admin]\ntoken = "hunter2"\n' + upstream(api_key='"hunter2"')
    assert "hunter2" not in repr(written(text))


@pytest.mark.parametrize(
    ("text", "environ", "token"),
    [
        ("", {}, None),
        ("", {"RELAY_ADMIN_TOKEN": ""}, None),
        ("", {"RELAY_ADMIN_TOKEN": "from-env"}, "from-env"),
        ("[admin]\nport = 1\n", {"RELAY_ADMIN_TOKEN": "from-env"}, "from-env"),
        ('[admin]\ntoken = "written"\n', {"RELAY_ADMIN_TOKEN": "from-env"}, "written"),
    ],
)
def test_admin_token(text: str, environ: dict[str, str], token: str | None) -> None:
    """Without a token in the file RELAY_ADMIN_TOKEN is it, and without either there is none."""
    found = written(text + UPSTREAM, environ).admin.token
    assert (found and found.reveal()) == token


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ('["a", "b"]', {"a": "a", "b": "b"}),
        ('["*"]', {"*": "*"}),
        ('["*", "a"]', {"*": "*", "a": "a"}),
        ('{ a = "x", b = "x" }', {"a": "x", "b": "x"}),
        ('{ "*" = "*", a = "x" }', {"*": "*", "a": "x"}),
    ],
)
def test_model_map(models: str, names: dict[str, str]) -> None:
    """Models as a list or a table are one map from the public name to the upstream's."""
    assert written(upstream(models=models)).upstreams[0].model_map == names


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://h", "http://h"),
        ("http://h/", "http://h"),
        ("https://h:8443/v1//", "https://h:8443/v1"),
        ("HTTP://H/v1", "HTTP://H/v1"),
        ("http://[::1]:9/v1", "http://[::1]:9/v1"),
    ],
)
def test_base_url(url: str, normal: str) -> None:
    """A base_url loses the slashes at its end."""
    assert written(upstream(base_url=f'"{url}"')).upstreams[0].base_url == normal


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("embedded:", "embedded"),
        ("embedded:/var/lib/relay", "embedded"),
        ("embedded:state dir", "embedded"),
        ("memory:", "memory"),
        ("redis://h", "redis"),
        ("redis://:pass@h:6379/3", "redis"),
        ("rediss://h", "rediss"),
        ("redis+sentinel://a:26379,b:26379/main", "redis+sentinel"),
        ("redis+cluster://a,b,c", "redis+cluster"),
        ("rediss+cluster://a?ssl_ca_certs=ca.crt", "rediss+cluster"),
        ("unix:///run/redis.sock?db=1", "unix"),
    ],
)
def test_store(url: str, scheme: str) -> None:
    """Every form of store URL is accepted, in place or by reference."""
    assert written(f'[store]\nurl = "{url}"\n' + UPSTREAM).store.scheme == scheme
    assert written('[store]\nurl = { env = "U" }\n' + UPSTREAM, {"U": url}).store.url.reveal() == url


@pytest.mark.parametrize(
    "origins",
    ['["*"]', '["https://a.example", "http://localhost:3000", "http://[::1]:5173"]', '["tauri://localhost"]'],
)
def test_cors_origins(origins: str) -> None:
    """Origins are accepted as browsers send them, or "*" alone."""
    assert tomllib.loads(f"o = {origins}")["o"] == list(
        written(f"[server]\ncors_origins = {origins}\n" + UPSTREAM).server.cors_origins
    )


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nport = 0\n[admin]\nport = 0\n",
        "[server]\nport = 65535\ndrain_s = 0\nkeepalive_s = 0.5\n",
        '[server]\nhost = "10.0.0.1"\nport = 8081\n',
    ],
)
def test_accepted(text: str) -> None:
    """The edges of the ranges are inside; one port on two hosts is two listeners."""
    written(text + UPSTREAM)


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[server]\nprot = 1\n", "server.prot: unknown key; did you mean 'port'?"),
        ("[sever]\nport = 1\n", "sever: unknown key; did you mean 'server'?"),
        ('path = "x"\n', "path: unknown key; there are 'server', 'admin', 'store', 'upstreams', 'plugins', 'chains'"),
        ("server = 1\n", "server: Expected `object`, got `int`"),
        ("[server]\nport = 65536\n", "server.port: Expected `int` <= 65535"),
        ("[server]\nport = -1\n", "server.port: Expected `int` >= 0"),
        ('[server]\nport = "80"\n', "server.port: Expected `int`, got `str`"),
        ("[server]\nworkers = 0\n", "server.workers: Expected `int` >= 1"),
        ("[server]\nworkers = true\n", "server.workers: Expected `int`, got `bool`"),
        ("[server]\ndrain_s = -1\n", "server.drain_s: Expected `float` >= 0.0"),
        ("[server]\nidle_timeout_s = 0\n", "server.idle_timeout_s: Expected `float` > 0.0"),
        ("[server]\nkeepalive_s = inf\n", "server.keepalive_s: Expected `float` <= 86400.0"),
        ("[server]\nkeepalive_s = nan\n", "server.keepalive_s: Expected `float` > 0.0"),
        ("[server]\nmax_body_bytes = 0\n", "server.max_body_bytes: Expected `int` >= 1"),
        ('[server]\nhost = ""\n', "server.host: Expected `str` of length >= 1"),
        ("[admin]\ntoken = 1\n", 'admin.token: a secret is a string, { env = "NAME" } or { file = "path" }'),
        ('[admin]\ntoken = ""\n', "admin.token: the value is empty; set it, or leave the option out"),
        ('[admin]\ntoken = { env = "NO" }\n', 'admin.token: environment variable NO is not set; set it, or give a string, { env = "NAME" } or { file = "path" }'),
        ('[admin]\ntoken = { file = "no" }\n', 'admin.token: file /conf/no cannot be read (No such file or directory); make it readable, or give a string, { env = "NAME" } or { file = "path" }'),
        ("[admin]\nport = 8080\n", "admin.port: 8080 is the public listener's on the same host; give one of them another port"),
        ('[admin]\nport = 8080\nhost = "0.0.0.0"\n', "admin.port: 8080 is the public listener's on the same host; give one of them another port"),
        ("[[plugins]]\nues = 1\n", 'plugins[0].use: missing; name a plugin, as in use = "auth" or use = "module:Class"'),
        ('[[plugins]]\nuse = ""\n', 'plugins[0].use: missing; name a plugin, as in use = "auth" or use = "module:Class"'),
        ("[plugins]\nuse = 1\n", "plugins: Expected `array`, got `object`"),
        ('[[chains]]\nname = "a b"\n', "chains[0].name: Expected `str` matching regex '^[A-Za-z0-9._-]{1,64}$'"),
        ('[[chains]]\nname = "a"\n[[chains.plugins]]\nues = 1\n', 'chains[0].plugins[0].use: missing; name a plugin, as in use = "auth" or use = "module:Class"'),
        ('[[chains]]\nname = "a"\nmatch = { keys = ["*"] }\n', "chains[0].match: keys: '*' fits every request; leave keys out"),
        ('[[chains]]\nname = "a"\nmatch = {}\n', "chains[0].match: match fits everything; say which keys, labels, models or routes, or leave match out"),
        ('[[chains]]\nname = "a"\nmatch = { models = ["g*4"] }\n', "chains[0].match: models: 'g*4': * stands at the end, for all that begin so, and nowhere else"),
        ('[[chains]]\nname = "a"\nmatch = { keys = [] }\n', "chains[0].match.keys: Expected `array` of length >= 1"),
    ],
)  # fmt: skip
def test_refused(text: str, problem: str) -> None:
    """A wrong table is refused with the file, the key and what is expected."""
    assert problems(text + UPSTREAM) == (problem,)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nmae": "1"}, "upstreams[0].nmae: unknown key; did you mean 'name'?"),
        ({"name": '""'}, "upstreams[0].name: Expected `str` of length >= 1"),
        ({"weight": "0"}, "upstreams[0].weight: Expected `int` >= 1"),
        ({"weight": "1.5"}, "upstreams[0].weight: Expected `int`, got `float`"),
        ({"priority": '"low"'}, "upstreams[0].priority: Expected `int`, got `str`"),
        ({"connect_timeout_s": "0"}, "upstreams[0].connect_timeout_s: Expected `float` > 0.0"),
        ({"first_byte_timeout_s": "-1"}, "upstreams[0].first_byte_timeout_s: Expected `float` > 0.0"),
        ({"idle_timeout_s": "true"}, "upstreams[0].idle_timeout_s: Expected `float`, got `bool`"),
        ({"retry_on": '["connect", "firstbyte"]'}, "upstreams[0].retry_on[1]: unknown value 'firstbyte'; did you mean 'first_byte'?"),
        ({"retry_on": "[429]"}, "upstreams[0].retry_on[0]: Expected `str`, got `int`"),
        ({"usage": '"on"'}, "upstreams[0].usage: unknown value 'on'; there are 'inject', 'off'"),
        ({"models": "[]"}, 'upstreams[0]: models is empty; name the models to serve, or give ["*"] to pass every name through'),
        ({"models": '"*"'}, "upstreams[0].models: Expected `object | array`, got `str`"),
        ({"models": '[""]'}, "upstreams[0].models[0]: Expected `str` of length >= 1"),
        ({"models": '{ "*" = "x" }'}, "upstreams[0]: models: '*' = 'x': \"*\" stands for the name asked for; write \"*\" = \"*\", or name both"),
        ({"models": '{ x = "*" }'}, "upstreams[0]: models: 'x' = '*': \"*\" stands for the name asked for; write \"*\" = \"*\", or name both"),
    ],
)  # fmt: skip
def test_upstream_refused(changes: dict[str, str], problem: str) -> None:
    """A wrong upstream is refused with its index and key."""
    assert problems(upstream(**changes)) == (problem,)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://h/v1", "is not an http or https URL"),
        ("h:9001/v1", "is not an http or https URL"),
        ("/v1", "is not an http or https URL"),
        ("", "is not an http or https URL"),
        ("http://", "is not an http or https URL"),
        ("http:///v1", "is not an http or https URL"),
        ("http://h:99999/v1", "is not an http or https URL"),
        ("http://h:hunter2/v1", "is not an http or https URL"),
        ("http://h:0/v1", "is not an http or https URL"),
        ("http://[::1/v1", "is not an http or https URL"),
        ("http://user:hunter2@h/v1", "carries a user or password; give the key in api_key"),
        ("http://hunter2@h/v1", "carries a user or password"),
        ("http://h/v1?key=hunter2", "carries a query or fragment"),
        ("http://h/v1?", "carries a query or fragment"),
        ("http://h/v1#x", "carries a query or fragment"),
        ("http://h /v1", "holds white space"),
        ("http://h/v1\\n", "holds white space"),
    ],
)
def test_base_url_refused(url: str, message: str) -> None:
    """A base_url that is more or less than an http URL with a path is refused, and not repeated."""
    (problem,) = problems(upstream(base_url=f'"{url}"'))
    assert message in problem
    assert problem.startswith("upstreams[0]: base_url ")
    assert "hunter2" not in problem


@pytest.mark.parametrize("key", ["hunter2\\r\\nX-Evil: 1", "hunter2\\n", "\\u0000hunter2"])
def test_api_key_refused(key: str) -> None:
    """A key that would end the header it stands in is refused, and not repeated."""
    (problem,) = problems(upstream(api_key=f'"{key}"'))
    assert problem.startswith("upstreams[0]: api_key holds a character that no header can carry")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("reddis://:hunter2@h", "unknown scheme; did you mean redis:? give one of embedded:, embedded:DIR, redis://"),
        ("hunter2", "unknown scheme; give one of"),
        ("sqlite:x", "unknown scheme; give one of"),
        ("redis:", "redis: is not followed by what it needs; give it a host"),
        ("redis:///0", "redis: is not followed by what it needs; give it a host"),
        ("redis+sentinel:h", "redis+sentinel: is not followed by what it needs"),
        ("memory:x", "memory: is not followed by what it needs; nothing follows it"),
        ("redis://:hunter2@h/x", "the database is not a number"),
        ("redis+sentinel://:hunter2@h", "redis+sentinel: names no service"),
    ],
)
def test_store_refused(url: str, message: str) -> None:
    """A store URL that nothing could serve is refused, and not repeated: a password may stand in it."""
    (problem,) = problems(f'[store]\nurl = "{url}"\n' + UPSTREAM)
    assert problem.startswith(f"store: url: {message}")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example/",
        "https://a.example/x",
        "a.example",
        "https://A.example",
        "https://*.a.example",
        "null",
        "",
        "*",
    ],
)
def test_cors_origins_refused(origin: str) -> None:
    """What no browser sends as an origin is refused, and "*" beside others."""
    (problem,) = problems(f'[server]\ncors_origins = ["{origin}", "https://b"]\n' + UPSTREAM)
    assert problem.startswith(f"server: cors_origins: {origin!r} is not an origin as browsers send it; write ")


def test_no_upstream() -> None:
    """A configuration without an upstream is refused: there is nothing to serve."""
    expected = "upstreams: there are none; add an [[upstreams]] table with name, base_url and models"
    assert problems("") == (expected,)


def test_duplicate_upstream() -> None:
    """Two upstreams of one name are refused with both their places."""
    expected = "upstreams[2].name: 'main' is taken by upstreams[0]; give each its own"
    assert problems(upstream() + upstream(name='"b"') + upstream()) == (expected,)


def test_missing_keys() -> None:
    """An upstream has a name, an address and models; all that lack are named."""
    assert problems("[[upstreams]]\n") == (
        "upstreams[0].name: missing; expected str",
        "upstreams[0].base_url: missing; expected str",
        "upstreams[0].models: missing; expected [str, …] | { name = str, … }",
    )


def test_every_problem() -> None:
    """All problems of a file are reported at once, a line each."""
    text = '[server]\nprot = 1\nhost = 3\n[admni]\n[store]\nurl = "x"\n' + upstream(weight="0", usage='"no"')
    assert problems(text) == (
        "admni: unknown key; did you mean 'admin'?",
        "server.prot: unknown key; did you mean 'port'?",
        "server.host: Expected `str`, got `int`",
        "store: url: unknown scheme; give one of embedded:, embedded:DIR, redis://, rediss://, redis+sentinel://, redis+cluster:// or memory:",
        "upstreams[0].weight: Expected `int` >= 1",
        "upstreams[0].usage: unknown value 'no'; there are 'inject', 'off'",
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[server]\nport = \n", "(at line 2, column 8)"),
        ("[server\n", "(at line 1, column 8)"),
        ("[server]\nport = 1\nport = 2\n", "(at line 3, column 9)"),
        ('[server]\nhost = "x', "(at end of document)"),
    ],
)
def test_syntax(text: str, place: str) -> None:
    """What is not TOML is refused with file, line and column."""
    (problem,) = problems(text)
    assert problem.startswith("not TOML: ")
    assert problem.endswith(place)


# The file -------------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    """A file is read as UTF-8, and its secrets' files are found beside it."""
    (tmp_path / "token").write_text("t-2\n")
    path = tmp_path / "relay.toml"
    path.write_text('[admin]\ntoken = { file = "token" }\n' + upstream(name='"主"'), encoding="utf-8")
    config = load(path)
    assert config.admin.token
    assert (config.admin.token.reveal(), config.upstreams[0].name, config.path) == ("t-2", "主", path)


def test_load_without_a_file(tmp_path: Path) -> None:
    """A missing file is refused with the command that writes one."""
    with pytest.raises(
        ConfigError, match=r"no\.toml: cannot be read \(No such file or directory\); `relay init > .*no\.toml`"
    ):
        load(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); let this user read it, as a file$"):
        load(tmp_path)


def test_load_not_utf8(tmp_path: Path) -> None:
    """A file that is not UTF-8 is refused with the place."""
    path = tmp_path / "relay.toml"
    path.write_bytes("# 中".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"relay\.toml: not UTF-8 at byte 2; save it as UTF-8"):
        load(path)


def test_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless another is given, secrets come from the environment of the process."""
    monkeypatch.setenv("SOME_KEY", "sk-3")
    config = parse(upstream(api_key='{ env = "SOME_KEY" }'), PATH)
    assert config.upstreams[0].api_key
    assert config.upstreams[0].api_key.reveal() == "sk-3"


def test_frozen() -> None:
    """A configuration does not change once read."""
    config = written(UPSTREAM)
    with pytest.raises(AttributeError):
        config.server.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tables", "where"),
    [
        ("", "relay-data"),
        ('[store]\ndata_dir = "/var/lib/relay"', "/var/lib/relay"),
        ('[store]\nurl = "redis://h"\ndata_dir = "kept"', "kept"),
        ('[store]\nurl = "embedded:own"\ndata_dir = "kept"', "own"),
    ],
)
def test_where_files_are_kept(tables: str, where: str) -> None:
    """Beside relay.toml, if it is not said otherwise."""
    assert written(tables + "\n" + UPSTREAM).store.data(Path("/etc/relay")) == Path("/etc/relay") / where
