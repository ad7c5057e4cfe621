"""What deploys the relay: the Dockerfile, compose.yaml, docs/kubernetes, and that they agree with it and with one another.

Read against the schemas of those who will read them, and against the relay's own readers of configurations and commands.
"""

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from relay.assembly import assemble
from relay.config import parse
from relay.testing.__main__ import KEYS, parser
from relay_plugins.tencent.fake.__main__ import parser as fake_parser
from relay_plugins.tencent.fake.server import SECRET_ID, SECRET_KEY

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("moderelay:"))
KUBERNETES = ROOT / "docs" / "kubernetes"
MANIFESTS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in sorted(KUBERNETES.glob("*.yaml"))
    if path.stem != "kustomization"
}
SECRETS = "/etc/relay-secrets"

every_service = pytest.mark.parametrize("name", SERVICES)


def seconds(text):
    """`25s`, as Compose and Prometheus write it."""
    return int(re.fullmatch(r"(\d+)s", text)[1])


# The Dockerfile


def instructions(word):
    """What stands behind each `word` of the Dockerfile, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    return [line.partition(" ")[2].strip() for line in text.splitlines() if line.startswith(word + " ")]


def test_the_dockerfile_has_nothing_to_lint():
    """hadolint is silent, also in what it only informs of."""
    linted = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", "--failure-threshold", "style", ROOT / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "", "") == (linted.returncode, linted.stdout, linted.stderr)


def test_the_image_is_built_of_what_is_let_in():
    """Whatever is copied is let in by .dockerignore, and nothing else is."""
    copied = {name for line in instructions("COPY") if not line.startswith("--") for name in line.split()[:-1]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_runs_as_a_number():
    """Kubernetes can see that it is not root's, and the manifests say the same number."""
    (user,) = instructions("USER")
    pod = MANIFESTS["deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == user
    assert pod["fsGroup"] == pod["runAsGroup"] != 0


def test_the_image_asks_the_admin_listener():
    """The port of the health check is one of those that are exposed."""
    (check,) = instructions("HEALTHCHECK")
    assert ["8080 8081"] == instructions("EXPOSE")
    assert "'127.0.0.1', 8081" in check
    assert "/healthz" in check


# compose.yaml


def test_compose_reads_it():
    """It is a file of the Compose Specification."""
    assert sorted(SERVICES) == PyCompose.from_yaml(yaml.safe_dump(COMPOSE)).service_names()


@every_service
def test_image_is_pinned(name):
    """An image has the tag of a version, or is built here; only one service builds."""
    service = SERVICES[name]
    if name in OURS:
        assert service["image"] == "moderelay:local"
        assert ("build" in service) is (name == "relay")
    else:
        assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+[a-z0-9.-]*", service["image"])


@every_service
def test_service_has_no_more_rights_than_it_needs(name):
    """A read-only root, no capabilities, no way to get any."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & set(service)


@every_service
def test_port_is_open_on_this_machine_alone(name):
    """Each published port is bound to loopback."""
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in SERVICES[name].get("ports", []))


@every_service
def test_what_is_mounted_is_there(name):
    """Files are the repository's, and cannot be written; volumes are named below."""
    for mount in SERVICES[name].get("volumes", []):
        source, _, target = mount.partition(":")
        if source.startswith("./"):
            assert (ROOT / source).exists()
            assert target.endswith(":ro")
        else:
            assert source in COMPOSE["volumes"]


@every_service
def test_who_is_waited_for_is_asked(name):
    """A service that another waits for has a health check."""
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        assert wanted == {"condition": "service_healthy"}
        assert "test" in SERVICES[other]["healthcheck"]


def demo_config():
    path = ROOT / "docs" / "compose" / "relay.toml"
    return parse(path.read_text(), path, environ=SERVICES["relay"]["environment"])


def listening():
    """`HOST:PORT` of each service, as the others reach it."""
    config = demo_config()
    ports = {"relay": [config.server.port, config.admin.port], "redis": [6379], "prometheus": [9090]}
    for name in ("upstream-1", "upstream-2"):
        ports[name] = [parser().parse_args(SERVICES[name]["command"]).port]
    ports["tms"] = [fake_parser().parse_args(SERVICES["tms"]["command"]).port]
    return {f"{name}:{port}" for name, numbers in ports.items() for port in numbers}


def test_the_demos_relay_is_sound():
    """`relay check` accepts its configuration; its words are files that are mounted with it."""
    config = demo_config()
    assemble(config)
    assert "./docs/compose:/etc/relay:ro" in SERVICES["relay"]["volumes"]
    assert config.path.parent == ROOT / "docs" / "compose"
    assert config.store.data_dir in {mount.split(":")[1] for mount in SERVICES["relay"]["volumes"]}
    assert config.server.drain_s < seconds(SERVICES["relay"]["stop_grace_period"])
    text = config.path.read_text()
    assert f'secret_id = "{SECRET_ID}", secret_key = "{SECRET_KEY}"' in text


def test_services_ask_where_others_listen():
    """Every address in a command, in relay.toml and in Prometheus' file is that of a service, with its port."""
    config = demo_config()
    scraped = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())["scrape_configs"]
    asked = {target for job in scraped for group in job["static_configs"] for target in group["targets"]}
    asked |= set(re.findall(r"//([\w.-]+:\d+)", config.path.read_text()))
    asked |= {address for name in OURS for word in SERVICES[name].get("command", []) for address in urls(word)}
    asked |= set(urls(SERVICES["grafana"]["environment"]["PROMETHEUS_URL"]))
    assert asked <= listening() | {"localhost:9090"}
    assert {"relay:8080", "relay:8081", "redis:6379", "tms:9520", "prometheus:9090"} <= asked


def urls(text):
    return re.findall(r"://([\w.-]+:\d+)", text)


def test_published_ports_are_listened_on():
    """Each is one on which its service listens; Grafana's is Grafana's."""
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert f"{name}:{port.rpartition(':')[2]}" in listening() | {"grafana:3000"}


def test_the_demos_commands_are_there():
    """Their words are read, their files are mounted, and the load has keys that are let in."""
    for name in OURS:
        service = SERVICES[name]
        for word in service.get("command", []):
            if word.startswith("/etc/relay/"):
                assert "./docs/compose:/etc/relay:ro" in service["volumes"]
                assert (ROOT / "docs/compose" / Path(word).name).exists()
    load = parser().parse_args(SERVICES["load"]["command"])
    assert (load.command, load.requests) == ("load", None)
    auth = next(table for table in demo_config().plugins if table["use"] == "auth")
    assert {key["key"] for key in auth["keys"]} == set(SERVICES["load"]["environment"][KEYS].split())


def test_the_demo_says_what_is_not_wanted():
    """The word list has phrases, and the models say each word that only the service knows."""
    folder = ROOT / "docs" / "compose"
    assert [line for line in (folder / "words.txt").read_text().splitlines() if line and line[0] != "#"]
    known = [line.split(":")[0] for line in (folder / "tms-words.txt").read_text().splitlines() if line[0] != "#"]
    assert known == parser().parse_args(SERVICES["upstream-1"]["command"]).phrase


def test_grafana_finds_its_files():
    """Dashboards lie where the provider looks, the first page is one of them, and the step is Prometheus' own."""
    grafana = SERVICES["grafana"]
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in grafana["volumes"])
    providers = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/relay.yaml").read_text())["providers"]
    assert [mounts["./grafana/dashboards"]] == [provider["options"]["path"] for provider in providers]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == mounts["./grafana/dashboards"]
    assert (ROOT / "grafana" / "dashboards" / home.name).exists()
    for kind in ("dashboards", "datasources"):
        assert mounts[f"./grafana/provisioning/{kind}"] == f"/etc/grafana/provisioning/{kind}"
    (source,) = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    scraping = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    assert scraping["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]


def test_prometheus_finds_its_rules():
    """The rules lie beside the file that names them, in the repository as in the container."""
    (pattern,) = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())["rule_files"]
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in SERVICES["prometheus"]["volumes"])
    assert list((ROOT / "grafana").glob(pattern))
    config = Path(mounts["./grafana/prometheus.yaml"])
    assert config.parent / Path(pattern).parent == Path(mounts["./grafana/alerts"])
    assert f"--config.file={config}" in SERVICES["prometheus"]["command"]


# Kubernetes


@pytest.mark.parametrize("version", ["1.27", kubernetes_validate.latest_version().rpartition(".")[0]])
@pytest.mark.parametrize("name", sorted(set(MANIFESTS) - {"podmonitor"}))
def test_manifest_fits_its_schema(name, version):
    """Kubernetes knows every field, from the version on that docs/deploying.md names."""
    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_every_manifest_is_applied():
    """The Kustomization names each file, and makes the ConfigMap of files that there are."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert {f"{name}.yaml" for name in MANIFESTS} == set(kustomization["resources"])
    (config,) = kustomization["configMapGenerator"]
    assert all((KUBERNETES / file).exists() for file in config["files"])
    assert config["name"] in {volume.get("configMap", {}).get("name") for volume in pod()["volumes"]}
    (image,) = kustomization["images"]
    assert image["name"] == container()["image"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", image["newTag"])


def pod():
    return MANIFESTS["deployment"]["spec"]["template"]["spec"]


def container():
    (only,) = pod()["containers"]
    return only


def test_the_pod_is_restricted():
    """What the profile `restricted` of the Pod Security Standards asks for, and a root that cannot be written."""
    namespace = MANIFESTS["namespace"]["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod())
    assert all(set(volume) & {"configMap", "secret", "emptyDir"} for volume in pod()["volumes"])
    assert pod()["automountServiceAccountToken"] is False


def cluster_config(tmp_path):
    """The relay.toml of the ConfigMap, with files of secrets that there are; and their names."""
    text = (KUBERNETES / "relay.toml").read_text()
    mounts = {mount["mountPath"] for mount in container()["volumeMounts"]}
    assert {SECRETS, str(Path(container()["args"][-1]).parent)} <= mounts
    names = set(re.findall(rf'^[^#\n]*"{SECRETS}/([\w-]+)"', text, re.MULTILINE))
    for name in names:
        (tmp_path / name).write_text("redis://redis:6379/0" if name == "store-url" else f"the-{name}")
    (tmp_path / "words.txt").write_text((KUBERNETES / "words.txt").read_text())
    return parse(text.replace(SECRETS, str(tmp_path)), tmp_path / "relay.toml", environ={}), names


def test_the_clusters_relay_is_sound(tmp_path):
    """`relay check` accepts its configuration, the ports are the container's, and it keeps its files on the volume."""
    config, _ = cluster_config(tmp_path)
    assemble(config)
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert {"http": config.server.port, "admin": config.admin.port} == ports
    assert config.store.data_dir in {mount["mountPath"] for mount in container()["volumeMounts"]}


def test_secrets_are_only_referred_to(tmp_path):
    """No manifest is a Secret; what relay.toml reads is in the line of docs/deploying.md that makes one."""
    assert "Secret" not in {manifest["kind"] for manifest in MANIFESTS.values()}
    _, names = cluster_config(tmp_path)
    line = re.search(r"create secret generic relay (.+)", (ROOT / "docs" / "deploying.md").read_text())[1]
    assert names == set(re.findall(r"--from-file=([\w-]+)", line))
    assert "relay" in {volume.get("secret", {}).get("secretName") for volume in pod()["volumes"]}


def test_a_pod_has_the_time_to_drain(tmp_path):
    """It is killed only after the delay and the grace of relay.toml, and ten seconds to settle."""
    server = cluster_config(tmp_path)[0].server
    assert pod()["terminationGracePeriodSeconds"] >= server.shutdown_delay_s + server.drain_s + 10
    # Whoever goes by /readyz has seen it by then; who goes by the deletion is quicker.
    asked = container()["readinessProbe"]
    assert server.shutdown_delay_s >= asked["periodSeconds"] * asked["failureThreshold"]


def test_a_rollout_takes_nothing_away():
    """There is a new pod before an old one goes, and an eviction takes one at a time."""
    spec = MANIFESTS["deployment"]["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert spec["replicas"] >= 2
    assert MANIFESTS["poddisruptionbudget"]["spec"]["maxUnavailable"] == 1


def test_selectors_find_the_pods():
    """Each is a label of the pods, and each port a name of the container's."""
    labels = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container()["ports"]}
    selectors = [
        MANIFESTS["deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["service"]["spec"]["selector"],
        MANIFESTS["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["networkpolicy"]["spec"]["podSelector"]["matchLabels"],
        MANIFESTS["podmonitor"]["spec"]["selector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in pod()["topologySpreadConstraints"]),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    named = [
        *(port["targetPort"] for port in MANIFESTS["service"]["spec"]["ports"]),
        *(port["port"] for rule in MANIFESTS["networkpolicy"]["spec"]["ingress"] for port in rule["ports"]),
        *(container()[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "liveness", "readiness")),
        *(endpoint["port"] for endpoint in MANIFESTS["podmonitor"]["spec"]["podMetricsEndpoints"]),
    ]
    assert set(named) == ports
    assert [port["targetPort"] for port in MANIFESTS["service"]["spec"]["ports"]] == [
        "http"
    ]  # the admin port is no client's


def test_pods_are_scraped_as_the_rules_expect():
    """The job is the one of grafana/prometheus.yaml, as often as there."""
    spec = MANIFESTS["podmonitor"]["spec"]
    job = MANIFESTS["deployment"]["spec"]["template"]["metadata"]["labels"][spec["jobLabel"]]
    scraping = yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text())
    assert job in {each["job_name"] for each in scraping["scrape_configs"]}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint["interval"] == scraping["global"]["scrape_interval"]


def test_the_lines_that_make_prometheus_rules(tmp_path):
    """Each file of rules becomes a PrometheusRule whose spec is that file."""
    (lines,) = re.findall(r"^```sh\n(.+?)^```", (ROOT / "docs/deploying.md").read_text(), re.MULTILINE | re.DOTALL)
    assert lines.count("kubectl apply -f -") == 1
    shown = subprocess.run(
        ["sh", "-c", lines.replace("kubectl apply -f -", "cat")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    made = list(yaml.safe_load_all(shown.stdout))
    files = sorted((ROOT / "grafana" / "alerts").glob("*.yaml"))
    assert [yaml.safe_load(file.read_text()) for file in files] == [rule["spec"] for rule in made]
    assert [f"relay-{file.stem}" for file in files] == [rule["metadata"]["name"] for rule in made]
    assert {"PrometheusRule"} == {rule["kind"] for rule in made}
