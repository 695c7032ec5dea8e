"""The how-tos for cron, systemd and Kubernetes: programs run, and files have the SDK's settings and no others."""

import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import responses
import yaml

import peerseal
from peerseal.identity.environment import KNOWN
from peerseal.testing import MemoryRegistry
from tests.docs.pages import ROOT, named_blocks

PLATFORMS = ("cron-jobs", "systemd", "kubernetes")


def page(name: str) -> str:
    return (ROOT / f"docs/how-to/{name}.md").read_text()


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_page_names_only_settings_that_there_are(name: str) -> None:
    named = set(re.findall(r"\bPEERSEAL_[A-Z_]+\b", page(name)))
    assert {"PEERSEAL_SERVICE", "PEERSEAL_REGISTRY_URL", "PEERSEAL_KEY_DIR"} <= named <= set(KNOWN)


def test_the_unit_has_folders_for_keys_and_cache_and_a_join_token() -> None:
    unit = ConfigParser(strict=False, interpolation=None)
    text = named_blocks("docs/how-to/systemd.md", "ini")["billing.service"]
    unit.read_string(text)
    assert unit.sections() == ["Unit", "Service", "Install"]
    environment = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.M))
    assert environment["PEERSEAL_KEY_DIR"].startswith(f"%S/{unit['Service']['StateDirectory']}/")
    assert environment["PEERSEAL_CACHE_DIR"] == f"%C/{unit['Service']['CacheDirectory']}"
    assert environment["PEERSEAL_JOIN_TOKEN_FILE"] == f"%d/{unit['Service']['LoadCredential'].partition(':')[0]}"


def test_the_deployment_mounts_what_its_settings_name() -> None:
    pod = yaml.safe_load(named_blocks("docs/how-to/kubernetes.md", "yaml")["billing.yaml"])["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    settings = {setting["name"]: setting["value"] for setting in container["env"]}
    paths = [value for name, value in settings.items() if name.endswith(("_DIR", "_FILE"))]
    assert len(paths) == 4
    assert all(path.startswith(tuple(f"{mount}/" for mount in mounts.values())) for path in paths)
    rule = yaml.safe_load(re.search(r"```json\n(.*?)```", page("admission"), re.S)[1])[0]
    assert rule["services"] == {"system:serviceaccount:shop:billing": settings["PEERSEAL_SERVICE"]}


@responses.activate
def test_a_job_runs_again_with_the_key_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    responses.post("http://127.0.0.1:8081/reports", json={})
    program = named_blocks("docs/how-to/cron-jobs.md")["nightly.py"]
    with MemoryRegistry() as registry:
        token = registry.join_token("nightly")

        def from_env() -> peerseal.Identity:
            options = {"registry": "http://registry.test", "fetcher": registry, "alg": "ES256"}
            return peerseal.Identity("nightly", key_dir=tmp_path, join_token=token, **options)

        monkeypatch.setattr(peerseal.Identity, "from_env", from_env)
        for _ in range(2):
            names = {"__name__": "nightly"}
            exec(program, names)
            names["main"]()
        assert len(registry.jwk_set("nightly").keys) == 1
    assert len({call.request.headers["Authorization"] for call in responses.calls}) == 2
