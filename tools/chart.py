"""Makes what follows from the Helm chart and the registry's settings: ``python -m tools.chart``.

These are the plain manifests in deploy/kubernetes, the table of values in docs/reference/chart.md, the settings that
the chart's schema allows, and the chart's alerts. A chart reads no file outside of its folder. It needs the program
``helm``, which ``make chart`` installs.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from registry.settings import KNOWN

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy" / "helm" / "peerseal-registry"
MANIFESTS = ROOT / "deploy" / "kubernetes"
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
CHART_RULES = CHART / "rules.yml"
PAGE = ROOT / "docs" / "reference" / "chart.md"
RELEASE = "peerseal-registry"
KUBERNETES = "1.33.0"
"""A helm that was built as a Go module takes the cluster for a very old one unless it is told."""
SCHEMA = CHART / "values.schema.json"
_SET_BY_THE_CHART = {
    f"REGISTRY_{name}" for name in ("HOME", "TRUST_DOMAIN", "PUBLIC_URLS", "DRAIN_SECONDS", "METRICS_ONLY_AT")
}
_INSTALLED = Path(sys.prefix) / "helm" / "helm"
_MADE = "Made from deploy/helm/peerseal-registry by `make manifests`: change the chart instead."
_WITH_HELM_ONLY = ("app.kubernetes.io/managed-by", "helm.sh/")
"""Beginnings of the labels and annotations that mean nothing without Helm."""


def find_helm() -> str | None:
    """The program that ``make chart`` installed, else one on the path; None where there is none."""
    return str(_INSTALLED) if _INSTALLED.exists() else shutil.which("helm")


def helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs ``helm ARGUMENTS``. Raises FileNotFoundError where it is not installed."""
    program = find_helm()
    if program is None:
        raise FileNotFoundError("helm is not installed: run make chart")
    return subprocess.run([program, *arguments], capture_output=True, encoding="utf-8", timeout=100)  # noqa: S603 - our own program, by list


def rendered(values: Path, *options: str) -> list[dict[str, Any]]:
    """The objects of the chart with these values. Raises ValueError with what helm says of values that it refuses."""
    done = helm("template", RELEASE, str(CHART), f"--kube-version={KUBERNETES}", f"--values={values}", *options)
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def manifests() -> dict[str, str]:
    """The files of deploy/kubernetes by name: each Job is a file, since it runs when a person says so."""
    files: dict[str, list[dict[str, Any]]] = {"registry.yaml": []}
    for found in map(_without_helm, rendered(MANIFESTS / "values.yaml")):
        job = found["metadata"]["name"].removeprefix(f"{RELEASE}-") if found["kind"] == "Job" else "registry"
        files.setdefault(f"{job}.yaml", []).append(found)
    return {name: f"# {_MADE}\n{_dumped(objects)}" for name, objects in files.items()}


def _without_helm(found: dict[str, Any]) -> dict[str, Any]:
    metadata = found["metadata"]
    for kind in ("labels", "annotations"):
        kept = {name: text for name, text in metadata.pop(kind, {}).items() if not name.startswith(_WITH_HELM_ONLY)}
        metadata |= {kind: kept} if kept else {}
    return found


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML has no annotations
    """Writes texts of several lines as blocks, and repeats what occurs twice."""

    def ignore_aliases(self, _data: object) -> bool:
        """See yaml.SafeDumper."""
        return True


def _text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _dumped(objects: Sequence[dict[str, Any]]) -> str:
    return "".join(f"---\n{yaml.dump(found, Dumper=_Dumper, sort_keys=False, width=120)}" for found in objects)


def schema() -> str:
    """The schema of the values, in which ``settings`` are the registry's: those that the chart does not set itself, and
    that are no files and no secrets, which belong into Secrets."""
    found = json.loads(SCHEMA.read_text("utf-8"))
    in_files = {name.removesuffix("_FILE") for name in KNOWN if name.endswith("_FILE")}
    apart = {*_SET_BY_THE_CHART, *in_files, *(f"{name}_FILE" for name in in_files)}
    allowed = [*(name for name in KNOWN if name not in apart), "PEERSEAL_EXTERNAL_PREFIX"]
    found["properties"]["settings"]["propertyNames"]["enum"] = allowed
    return json.dumps(found, indent=2) + "\n"


def rules() -> str:
    """The alerts of deploy/prometheus."""
    return f"# Made from deploy/prometheus/rules.yml by `make manifests`: change that.\n{RULES.read_text('utf-8')}"


def page() -> str:
    """The page of the chart's values: each with its default, and the comment above it in values.yaml."""
    rows = "".join(f"| `{name}` | {default} | {meaning} |\n" for name, default, meaning in values())
    return (
        f"# Values of the Helm chart\n\n<!-- {_MADE} -->\n\nThe chart is `deploy/helm/peerseal-registry`;"
        " [Kubernetes](../how-to/kubernetes.md#run-the-registry) says how to install it.\n\n"
        f"| value | default | meaning |\n|---|---|---|\n{rows}"
    )


def values() -> Iterator[tuple[str, str, str]]:
    """The name, default and comment of each value of values.yaml, in its order. Raises KeyError for a value without a
    comment and ValueError for a comment without a value."""
    text = (CHART / "values.yaml").read_text("utf-8")
    comments = dict(_comments(text))
    yield from _described(yaml.safe_load(text), "", comments)
    if comments:
        raise ValueError(f"no values: {', '.join(comments)}")


def _described(found: dict[str, Any], prefix: str, comments: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    for key, value in found.items():
        name = f"{prefix}{key}"
        if name in comments or not isinstance(value, dict):
            default = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
            shown = "–" if value in ("", {}, []) or default == "" else f"`{default}`"
            yield name, shown, comments.pop(name)
        else:
            yield from _described(value, f"{name}.", comments)


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """The names of values with a comment directly above them, and that comment."""
    comment, parents = "", list[str]()
    for line in text.splitlines():
        depth, words = (len(line) - len(line.lstrip())) // 2, line.strip()
        if words.startswith("# "):
            comment = f"{comment} {words[2:]}".strip()
            continue
        key, colon, _ = words.partition(":")
        parents = [*parents[:depth], key]
        if comment and colon:
            yield ".".join(parents), comment
        comment = ""


def main() -> None:
    """Writes the files, the chart's own first: the others are made from it."""
    CHART_RULES.write_text(rules(), "utf-8")
    SCHEMA.write_text(schema(), "utf-8")
    for name, text in manifests().items():
        (MANIFESTS / name).write_text(text, "utf-8")
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
