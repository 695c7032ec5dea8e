"""What the chart makes of files of values: valid for Kubernetes, bounded, and in agreement with the registry."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from peerseal.identity.environment import KNOWN as SERVICE_SETTINGS
from registry.serving.connection import LINGER
from registry.serving.gunicorn_conf import WAITING_CALLS, graceful_timeout
from registry.settings import KNOWN
from registry.web.metrics import PROCESS
from tests.docs.pages import named_blocks
from tests.support.pods import named
from tools.chart import (
    CHART,
    CHART_RULES,
    KUBERNETES,
    MANIFESTS,
    PAGE,
    ROOT,
    RULES,
    SCHEMA,
    helm,
    manifests,
    page,
    rendered,
    rules,
    schema,
)

VALUES = {path.stem: path for path in [*Path(__file__).parent.glob("values/*.yaml"), MANIFESTS / "values.yaml"]}
SMALL, EVERYTHING, MONITOR, MIRROR = (VALUES[name] for name in ("small", "everything", "monitor", "mirror"))
SCALED = ("--set=workers=1", "--set=autoscaling.enabled=true", "--set=autoscaling.waitingCallsPercent=50")
OF_PROMETHEUS = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of Prometheus' operator, which have no schema in Kubernetes."""
NAME = "peerseal-registry"
Objects = list[dict[str, Any]]


@pytest.fixture(scope="module", params=VALUES)
def objects(request: pytest.FixtureRequest) -> Objects:
    return rendered(VALUES[request.param])


@pytest.fixture(scope="module")
def everything() -> Objects:
    return rendered(EVERYTHING)


def pods(objects: Objects) -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("Deployment", "Job")]


def containers(objects: Objects) -> list[dict[str, Any]]:
    return [each for pod in pods(objects) for each in (*pod.get("initContainers", ()), *pod["containers"])]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container["env"]}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_helm_lint_finds_nothing(values: Path) -> None:
    done = helm("lint", "--strict", f"--kube-version={KUBERNETES}", f"--values={values}", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.27", "1.33"])
def test_every_object_is_valid_for_kubernetes(objects: Objects, version: str) -> None:
    for each in objects:
        if each["kind"] not in OF_PROMETHEUS:
            kubernetes_validate.validate(each, version, strict=True)


def test_only_everything_makes_objects_that_kubernetes_does_not_know_itself(everything: Objects) -> None:
    assert {each["kind"] for each in everything} >= OF_PROMETHEUS
    assert not OF_PROMETHEUS & {each["kind"] for each in rendered(SMALL)}


def test_no_two_objects_have_one_name(objects: Objects) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert sorted(set(names)) == sorted(names)


def test_every_container_is_bounded(objects: Objects) -> None:
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"].keys() == {"requests", "limits"}
    for pod in pods(objects):
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_users_are_numbers_unless_the_platform_chooses_them() -> None:
    assert {pod["securityContext"]["runAsUser"] for pod in pods(rendered(SMALL))} == {10001}
    assert not any("runAsUser" in pod["securityContext"] for pod in pods(rendered(VALUES["openshift"])))


def test_every_mount_is_a_volume_and_every_path_of_a_setting_is_mounted(objects: Objects) -> None:
    for pod in pods(objects):
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounted = [
            mount for each in (*pod.get("initContainers", ()), *pod["containers"]) for mount in each["volumeMounts"]
        ]
        assert {mount["name"] for mount in mounted} == volumes
    for container in containers(objects):
        paths = tuple(mount["mountPath"] for mount in container["volumeMounts"])
        files = [value for name, value in environment(container).items() if name.endswith(("_FILE", "_HOME"))]
        assert [path for path in files if not path.startswith(paths)] == []


def test_every_setting_is_one_that_the_program_knows(objects: Objects) -> None:
    for container in containers(objects):
        unknown = environment(container).keys() - {*KNOWN, *SERVICE_SETTINGS, "WEBHOOK"}
        assert unknown == set()


def test_a_secret_is_a_file_and_never_a_setting_of_the_registry(objects: Objects) -> None:
    for container in containers(objects):
        assert [each["name"] for each in container["env"] if "valueFrom" in each] in ([], ["WEBHOOK"])


def test_only_the_jobs_have_the_owners_url_and_only_init_the_root_key(everything: Objects) -> None:
    def mounting(secret: str) -> set[str]:
        return {each["metadata"]["name"] for each in everything if f"'secretName': '{secret}'" in str(each)}

    assert mounting("peerseal-registry-owner") == {f"{NAME}-init", f"{NAME}-migrate"}
    assert mounting("peerseal-registry-root") == {f"{NAME}-init"}
    assert mounting("peerseal-registry-database") == {NAME}


def test_the_console_proves_itself_to_the_issuer_with_files_of_secrets(everything: Objects) -> None:
    node = named(everything, "Deployment", NAME)["spec"]["template"]["spec"]
    files = {each["name"]: each.get("value") for each in node["containers"][0]["env"]}
    mounted = {each["mountPath"]: each["name"] for each in node["containers"][0]["volumeMounts"]}
    secrets = {each["name"]: each["secret"] for each in node["volumes"] if "secret" in each}
    for setting, secret in (
        ("REGISTRY_CONSOLE_OIDC_CLIENT_SECRET_FILE", "registry-console-client"),
        ("REGISTRY_CONSOLE_OIDC_CA_FILE", "registry-console-ca"),
    ):
        folder, _, name = str(files[setting]).rpartition("/")
        assert secrets[mounted[folder]]["secretName"] == secret
        assert [item["path"] for item in secrets[mounted[folder]]["items"]] == [name]


def test_init_runs_before_the_first_install_and_migrate_before_each_upgrade(everything: Objects) -> None:
    hooks = {
        each["metadata"]["name"]: each["metadata"]["annotations"]["helm.sh/hook"]
        for each in everything
        if each["kind"] == "Job"
    }
    assert hooks == {f"{NAME}-init": "pre-install", f"{NAME}-migrate": "pre-upgrade"}


def test_a_schema_can_be_taken_back_by_the_same_job() -> None:
    job = named(rendered(SMALL, "--set=migrate.down=true"), "Job", f"{NAME}-migrate")["spec"]["template"]["spec"]
    assert job["initContainers"][0]["command"] == ["peerseal-registry", "migrate", "--down"]


def test_the_kubelet_waits_until_a_pod_has_drained(objects: Objects) -> None:
    for pod in pods(objects):
        for container in pod["containers"]:
            if container["name"] == "registry":
                pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
                drain = int(environment(container)["REGISTRY_DRAIN_SECONDS"])
                assert pod["terminationGracePeriodSeconds"] > pause + drain + graceful_timeout + LINGER


def test_the_kubelet_waits_for_the_calls_that_a_setting_lets_run_longer() -> None:
    def seconds(*options: str) -> int:
        spec = named(rendered(SMALL, *options), "Deployment", NAME)["spec"]["template"]["spec"]
        return int(spec["terminationGracePeriodSeconds"])

    longer = seconds("--set-string=settings.REGISTRY_GRACEFUL_TIMEOUT=600")
    assert longer - seconds() == 600 - graceful_timeout


def test_a_pod_is_marked_unready_before_its_drain_ends(objects: Objects) -> None:
    for container in containers(objects):
        if container["name"] == "registry":
            probe = container["readinessProbe"]
            noticed = probe["periodSeconds"] * probe["failureThreshold"] + 1
            assert int(environment(container)["REGISTRY_DRAIN_SECONDS"]) > noticed


def test_metrics_have_a_port_of_their_own_that_only_monitoring_reaches(everything: Objects) -> None:
    policy = named(everything, "NetworkPolicy", NAME)["spec"]
    sources = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert sources.keys() == {"api", "metrics"}
    assert sources["metrics"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    (container,) = named(everything, "Deployment", NAME)["spec"]["template"]["spec"]["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert environment(container)["REGISTRY_METRICS_ONLY_AT"] == str(ports["metrics"])
    assert [word for word in container["command"] if "--bind" in word] == [
        f"--bind=0.0.0.0:{ports['api']}",
        f"--bind=0.0.0.0:{ports['metrics']}",
    ]
    published = {each["metadata"]["name"]: each["spec"]["ports"] for each in everything if each["kind"] == "Service"}
    assert [port["targetPort"] for port in published[NAME]] == ["api"]


def test_every_pod_is_selected_by_a_policy_of_its_own(everything: Objects) -> None:
    selectors = [each["spec"]["podSelector"]["matchLabels"] for each in everything if each["kind"] == "NetworkPolicy"]
    for each in everything:
        if each["kind"] in ("Deployment", "Job"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert sum(selector.items() <= labels.items() for selector in selectors) == 1, each["metadata"]["name"]


def test_what_selects_pods_selects_the_registrys(everything: Objects) -> None:
    labels = named(everything, "Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
    for selector in (
        named(everything, "Service", NAME)["spec"]["selector"],
        named(everything, "Service", f"{NAME}-metrics")["spec"]["selector"],
        named(everything, "PodDisruptionBudget", NAME)["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    scraped = named(everything, "ServiceMonitor", NAME)["spec"]["selector"]["matchLabels"]
    assert scraped.items() <= named(everything, "Service", f"{NAME}-metrics")["metadata"]["labels"].items()


def test_what_selects_mirrors_selects_mirrors_alone(everything: Objects) -> None:
    mirror = named(everything, "Deployment", f"{NAME}-mirror")["spec"]["template"]["metadata"]["labels"]
    node = named(everything, "Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
    service = named(everything, "Service", f"{NAME}-mirror")
    for selector in (
        service["spec"]["selector"],
        named(everything, "PodDisruptionBudget", f"{NAME}-mirror")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= mirror.items()
        assert not selector.items() <= node.items()
    scraped = named(everything, "ServiceMonitor", f"{NAME}-mirror")["spec"]["selector"]["matchLabels"]
    assert scraped.items() <= service["metadata"]["labels"].items()


def test_the_autoscaler_asks_for_a_metric_that_there_is_in_parts_of_a_pods_capacity(everything: Objects) -> None:
    scaler = named(everything, "HorizontalPodAutoscaler", NAME)["spec"]
    waiting, cpu = scaler["metrics"]
    assert waiting["pods"]["metric"]["name"] in metric_names()
    assert waiting["pods"]["target"] == {"type": "AverageValue", "averageValue": str(4 * 5000 * 60 // 100)}
    assert cpu["resource"]["name"] == "cpu"
    assert "replicas" not in named(everything, "Deployment", NAME)["spec"]
    for options in ((), ("--set-string=settings.REGISTRY_WAITING_CALLS=90000",)):  # a setting can only lower it
        waiting, _ = named(rendered(SMALL, *SCALED, *options), "HorizontalPodAutoscaler", NAME)["spec"]["metrics"]
        assert int(waiting["pods"]["target"]["averageValue"]) == WAITING_CALLS // 2


def metric_names() -> set[str]:
    return {family.name for family in PROCESS.collect()}


def test_the_alerts_are_those_of_the_repository(everything: Objects) -> None:
    assert CHART_RULES.read_text() == rules()
    assert named(everything, "PrometheusRule", NAME)["spec"] == yaml.safe_load(RULES.read_text())


def test_prometheus_knows_the_nodes_by_the_job_that_the_alerts_name(everything: Objects) -> None:
    label = named(everything, "ServiceMonitor", NAME)["spec"]["jobLabel"]
    job = named(everything, "Service", f"{NAME}-metrics")["metadata"]["labels"][label]
    assert set(re.findall(r'job="([^"]+)"', RULES.read_text())) == {job}
    (endpoint,) = named(everything, "ServiceMonitor", f"{NAME}-mirror")["spec"]["endpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "peerseal-mirror"}]


def test_service_accounts_are_subjects_of_the_clusters_issuer(everything: Objects) -> None:
    cluster, other = json.loads(named(everything, "ConfigMap", f"{NAME}-oidc")["data"]["rules.json"])
    assert cluster["services"] == {
        "system:serviceaccount:shop:billing": "billing",
        "system:serviceaccount:shop:web": "client-service",
    }
    assert (cluster["issuer"], cluster["ca_file"]) == ("https://kubernetes.default.svc.cluster.local", "ca.crt")
    assert other["issuer"] == "https://ci.example.com"


def test_pods_are_replaced_when_the_rules_of_joining_change() -> None:
    def template(*options: str) -> Any:
        return named(rendered(SMALL, *options), "Deployment", NAME)["spec"]["template"]

    assert template() == template("--set=replicas=5")
    assert template() != template("--set=serviceAccounts.services.shop/web=web")


def test_a_release_of_mirrors_has_no_registry() -> None:
    objects = rendered(MIRROR)
    mirrors = {"Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"}
    assert {(each["kind"], each["metadata"]["name"]) for each in objects} == {
        (kind, f"{NAME}-mirror") for kind in mirrors
    }


def test_no_mirror_runs_unless_it_is_asked_for() -> None:
    assert "mirror" not in json.dumps(rendered(SMALL))


def test_who_may_call_a_mirror_and_who_may_read_its_metrics_is_bounded(everything: Objects) -> None:
    (rule,) = named(everything, "NetworkPolicy", f"{NAME}-mirror")["spec"]["ingress"]
    assert [source["namespaceSelector"]["matchLabels"] for source in rule["from"]] == [
        {"team": "shop"},
        {"kubernetes.io/metadata.name": "monitoring"},
    ]


def test_a_release_of_monitors_has_no_registry() -> None:
    objects = rendered(MONITOR)
    assert {each["kind"] for each in objects} == {"ConfigMap", "Deployment", "NetworkPolicy"}
    assert {environment(each)["PEERSEAL_REGISTRY_URL"] for each in containers(objects)} == {
        "https://peerseal.example.com"
    }


@pytest.mark.parametrize(
    ("option", "named_in_error"),
    [
        ("--set=replica=3", "replica"),
        ("--set=drain.second=3", "second"),
        ("--set=replicas=many", "replicas"),
        ("--set=settings.REGISTRY_PROXYS=1", "REGISTRY_PROXYS"),
        ("--set-string=settings.REGISTRY_HOME=/x", "REGISTRY_HOME"),
        ("--set=settings.REGISTRY_PROXIES=1", "REGISTRY_PROXIES"),
        ("--set=serviceAccounts.services.billing=billing", "billing"),
        ("--set=serviceAccounts.services.shop/billing=Not A Name", "Not A Name"),
        ("--set=trustDomain=", "trustDomain"),
        ("--set=publicUrls[0]=http://plain.example", "publicUrls"),
        ("--set=ingress.enabled=true", "ingress"),
        ("--set=monitor.pin=short", "pin"),
        ("--set=mirror.enabled=true", "pin"),
        (f"--set=mirror.enabled=true,mirror.pin={'A' * 43}", "mirror.registryUrl"),
        ("--set=mirror.replicas=0", "replicas"),
        ("--set=probes.readinessPath=/ready", "readinessPath"),
        ("--set=image.digest=latest", "digest"),
        ("--set-string=settings.REGISTRY_GRACEFUL_TIMEOUT=10m", "REGISTRY_GRACEFUL_TIMEOUT"),
        (
            "--set=autoscaling.enabled=true,autoscaling.minReplicas=9,autoscaling.maxReplicas=3",
            "minReplicas: 9 is more",
        ),
    ],
)
def test_a_mistake_in_the_values_is_refused_by_name(option: str, named_in_error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named_in_error)):
        rendered(SMALL, option)


def test_an_autoscaler_for_waiting_calls_is_refused_where_none_wait() -> None:
    with pytest.raises(ValueError, match=r"autoscaling\.waitingCallsPercent: .* no calls wait"):
        rendered(SMALL, *SCALED, "--set-string=settings.REGISTRY_WAITING_CALLS=0")


def test_names_that_look_like_numbers_stay_texts() -> None:
    names = "trustDomain=10.5,database.secret=1,database.key=2,keys.secret=3,priorityClassName=4,image.pullSecrets[0]=5"
    objects = rendered(SMALL, f"--set-string={names}")
    for each in objects:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    node = named(objects, "Deployment", NAME)["spec"]["template"]["spec"]
    assert environment(node["containers"][0])["REGISTRY_TRUST_DOMAIN"] == "10.5"
    assert (node["priorityClassName"], node["imagePullSecrets"]) == ("4", [{"name": "5"}])


def test_the_schema_lets_people_set_what_the_chart_does_not_set_itself() -> None:
    assert SCHEMA.read_text() == schema()
    allowed = set(json.loads(schema())["properties"]["settings"]["propertyNames"]["enum"])
    given = yaml.safe_load(EVERYTHING.read_text())["settings"].keys() | {"REGISTRY_PROXIES"}
    itself = set().union(*(environment(each) for each in containers(rendered(EVERYTHING)))) - given
    assert not allowed & itself


def test_the_schema_knows_every_value_and_refuses_all_others() -> None:
    def check(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        assert schema["additionalProperties"] is False, path
        assert schema["properties"].keys() - {"global"} == values.keys(), path  # Helm adds global itself
        for name, value in values.items():
            if isinstance(value, dict) and "properties" in schema["properties"][name]:
                check(schema["properties"][name], value, f"{path}.{name}")

    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    check(json.loads(SCHEMA.read_text()), defaults, "values")


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("values.yaml", {"Deployment", "Job", "Ingress"}),
        ("monitors.yaml", {"Deployment"}),
        ("mirrors.yaml", {"Deployment", "Service"}),
    ],
)
def test_the_values_of_the_page_are_valid(name: str, kinds: set[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(named_blocks("docs/how-to/kubernetes.md", "yaml")[name])
    objects = rendered(tmp_path / name)
    assert {each["kind"] for each in objects} >= kinds
    for each in objects:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_page_names_the_volumes_that_a_node_has(everything: Objects) -> None:
    told = (ROOT / "docs/how-to/kubernetes.md").read_text()
    folders = set(re.findall(r"^\| `(/[a-z/-]+)`", told, re.M))
    mounted = {mount["mountPath"] for each in containers(rendered(VALUES["values"])) for mount in each["volumeMounts"]}
    assert folders == mounted - {"/secrets/tls"}


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {(ROOT / "VERSION").read_text().strip()}


def test_the_plain_manifests_are_what_the_chart_makes() -> None:
    assert {
        path.name: path.read_text() for path in MANIFESTS.glob("*.yaml") if path.name != "values.yaml"
    } == manifests()


def test_the_page_of_values_is_what_the_chart_says() -> None:
    assert PAGE.read_text() == page()
