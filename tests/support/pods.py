"""Pods of the Helm chart, set up as a kubelet does: volumes in folders, and each container's command and settings.

A container then runs as a process of this machine, where paths and ports of the container are replaced by free ones
(`Pod.process_command`), or in a container engine (`Pod.docker_command`).
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.processes import BIN
from tests.support.processes import LOOPBACK, free_port

Contents = Mapping[str, Mapping[str, str]]
"""The files of each Secret or ConfigMap, by its name."""


def named(objects: Iterable[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def config_maps(objects: Iterable[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The contents of all ConfigMaps."""
    return {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}


@dataclass
class Pod:
    """A pod of a Deployment's or Job's template. ``folder`` is where its volumes are made."""

    template: dict[str, Any]
    folder: Path
    secrets: Contents
    config_maps: Contents = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec: dict[str, Any] = self.template["spec"]
        self.group = self.spec["securityContext"].get("fsGroup")
        self.containers = {
            each["name"]: each for each in (*self.spec.get("initContainers", ()), *self.spec["containers"])
        }
        self.volumes = {each["name"]: self._volume(each) for each in self.spec["volumes"]}
        self.ports: dict[int, int] = {}
        """The free port of this machine for each port of a container."""

    def _volume(self, volume: dict[str, Any]) -> Path:
        folder: Path = self.folder / volume["name"]
        folder.mkdir(parents=True)
        if "emptyDir" in volume:
            folder.chmod(0o777)
        else:
            write_mounted(folder, self._files(volume), self.group)
        return folder

    def _files(self, volume: dict[str, Any]) -> dict[str, str]:
        files: dict[str, str] = {}
        for source in volume.get("projected", {}).get("sources", [volume]):
            if "secret" in source:
                secret = self.secrets[source["secret"]["secretName"]]
                files |= {item["path"]: secret[item["key"]] for item in source["secret"]["items"]}
            else:
                files |= self.config_maps[source["configMap"]["name"]]
        return files

    def settings(self, name: str) -> dict[str, str]:
        """The environment of a container, as it is in the container."""
        found = {}
        for variable in self.containers[name].get("env", ()):
            if "value" in variable:
                found[variable["name"]] = str(variable["value"])
            else:
                of = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = self.secrets[of["name"]][of["key"]]
        return found

    def command(self, name: str) -> list[str]:
        """The command of a container, its ``$(NAME)`` replaced."""
        settings = self.settings(name)
        return [
            re.sub(r"\$\((\w+)\)", lambda found: settings[found[1]], word) for word in self.containers[name]["command"]
        ]

    # as a process of this machine

    def process_command(self, name: str) -> list[str]:
        """The command with this machine's paths and ports, and the program of this virtual environment."""
        program, *words = self.command(name)
        return [str(BIN / program), *(self._here(name, word) for word in words)]

    def process_settings(self, name: str) -> dict[str, str]:
        """The environment with this machine's paths and ports."""
        return {key: self._here(name, value) for key, value in self.settings(name).items()}

    def url(self, port: int) -> str:
        """Where the process listens for that port of the container."""
        return f"http://{LOOPBACK}:{self._port(port)}"

    def _port(self, port: int) -> int:
        return self.ports.setdefault(port, free_port())

    def _here(self, name: str, text: str) -> str:
        container = self.containers[name]
        folders = {mount["mountPath"]: str(self.volumes[mount["name"]]) for mount in container["volumeMounts"]}
        paths = "|".join(sorted(map(re.escape, folders), key=len, reverse=True))
        text = re.sub(rf"(?:(?<==)|^)(?:{paths})(?=/|$)", lambda found: folders[found[0]], text)
        for port in (each["containerPort"] for each in container.get("ports", ())):
            if text.startswith("--") and text.endswith(f":{port}"):
                return f"{text.partition('=')[0]}={LOOPBACK}:{self._port(port)}"
            text = re.sub(rf"^{port}$", str(self._port(port)), text)
        return text

    # in a container engine

    def docker_command(self, name: str, *options: str, image: str) -> list[str]:
        """``docker run`` of the container, bounded as its security context says."""
        container, user = self.containers[name], self.spec["securityContext"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        bounded = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        as_user = ["--user", f"{user['runAsUser']}:{user['runAsGroup']}", "--group-add", str(user["fsGroup"])]
        mounts = [
            word
            for mount in container["volumeMounts"]
            for word in ("--volume", _docker_mount(self.volumes[mount["name"]], mount))
        ]
        settings = [word for pair in self.settings(name).items() for word in ("--env", "=".join(pair))]
        command = self.command(name)
        return ["docker", "run", *bounded, *as_user, *mounts, *settings, *options, image, *command]


def _docker_mount(folder: Path, mount: dict[str, Any]) -> str:
    return f"{folder}:{mount['mountPath']}" + (":ro" if mount.get("readOnly") else "")


def write_mounted(folder: Path, files: Mapping[str, str], group: int | None) -> None:
    """Writes the files as a kubelet mounts a Secret: links through a folder that is exchanged as a whole. Called again,
    it exchanges the folder."""
    real = folder / f"..{sum(1 for _ in folder.iterdir())}"
    real.mkdir()
    for name, text in files.items():
        file = real / name
        file.write_text(text)
        file.chmod(0o440 if os.getuid() == 0 and group is not None else 0o444)
        if os.getuid() == 0 and group is not None:
            os.chown(file, 0, group)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    new = folder / "..data_tmp"
    new.symlink_to(real.name)
    new.rename(folder / "..data")
