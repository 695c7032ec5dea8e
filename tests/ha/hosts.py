"""Hosts for the database's members: network namespaces where root may make them, else the loopback interface.

In a namespace a host has an address of its own and can be cut off: packets to it vanish, and nothing is answered, as
when its power or its switch goes. The namespaces have no names and leave no trace: each ends with its process.
"""

import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from demo.processes import LOOPBACK, free_port

_PREFIX: Final = "198.18"
"""Set aside for tests between network devices (RFC 2544): no real host has such an address."""


class Host(ABC):
    """Where one member of the cluster runs."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    @abstractmethod
    def command(self, program: Sequence[str]) -> list[str]:
        """What starts ``program`` there."""

    @abstractmethod
    def free_port(self) -> int:
        """A TCP port that nothing listens on there."""

    @abstractmethod
    def cut_off(self) -> None:
        """Let all packets from and to it vanish."""

    @abstractmethod
    def connect(self) -> None:
        """Let packets through again."""


class Network(ABC):
    """All hosts, and this process with its own address there. As a context manager it is removed at the end."""

    can_cut_off: bool
    address: str
    """Of this process, as the hosts reach it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def host(self, name: str) -> Host:
        """A further host."""

    @abstractmethod
    def close(self) -> None:
        """Remove it."""


def network() -> Network:
    """Namespaces where this process may make them, else the loopback interface, on which no host can be cut off."""
    return Namespaces() if _may_make_namespaces() else Loopback()


def _may_make_namespaces() -> bool:
    tools = all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter"))
    return os.getuid() == 0 and tools and subprocess.run(["unshare", "--net", "true"], stderr=-3).returncode == 0


class _LoopbackHost(Host):
    def command(self, program: Sequence[str]) -> list[str]:
        return list(program)

    def free_port(self) -> int:
        return free_port()

    def cut_off(self) -> None:
        raise NotImplementedError("the loopback interface cannot be cut off for one host")

    connect = cut_off


class Loopback(Network):
    """Every host is the machine itself."""

    can_cut_off = False
    address = LOOPBACK

    def host(self, name: str) -> Host:
        return _LoopbackHost(name, LOOPBACK)

    def close(self) -> None:
        """Nothing was made."""


class _Namespace:
    """A network namespace that lives as long as one idle process in it."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        self.pid = self._holder.pid
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{self.pid}/ns/net") == own:  # until unshare(2) has happened
            time.sleep(0.01)

    def command(self, program: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *program]

    def ip(self, *arguments: str) -> str:
        """What ``ip ARGUMENTS`` prints there."""
        return _run(self.command(["ip", *arguments]))

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class _NamespaceHost(Host):
    def __init__(self, name: str, address: str, namespace: _Namespace, switch: _Namespace) -> None:
        super().__init__(name, address)
        self._namespace = namespace
        self._switch = switch

    def command(self, program: Sequence[str]) -> list[str]:
        return self._namespace.command(program)

    def free_port(self) -> int:
        return free_port()  # nothing else listens in the namespace: any will do

    def cut_off(self) -> None:
        self._switch.ip("link", "set", self.name, "down")

    def connect(self) -> None:
        self._switch.ip("link", "set", self.name, "up")


class Namespaces(Network):
    """A switch, in a namespace of its own, with one port for each host and one for this process."""

    can_cut_off = True

    def __init__(self) -> None:
        self._subnet = f"{_PREFIX}.{os.getpid() % 256}"
        self.address = f"{self._subnet}.1"
        self._interface = f"ha{os.getpid()}"
        self._hosts = 0
        self._open = ExitStack()
        try:
            self._switch = self._namespace()
            self._switch.ip("link", "add", "switch", "type", "bridge")
            self._switch.ip("link", "set", "switch", "up")
            self._plug_in(self._interface, os.getpid())
            _run(["ip", "address", "add", f"{self.address}/24", "dev", self._interface])
            _run(["ip", "link", "set", self._interface, "up"])
        except BaseException:
            self.close()
            raise

    def host(self, name: str) -> Host:
        self._hosts += 1
        address, namespace = f"{self._subnet}.{self._hosts + 1}", self._namespace()
        self._plug_in(name, namespace.pid)
        namespace.ip("address", "add", f"{address}/24", "dev", name)
        namespace.ip("link", "set", name, "up")
        namespace.ip("link", "set", "lo", "up")
        self._remember_neighbour(name, address, namespace)
        return _NamespaceHost(name, address, namespace, self._switch)

    def close(self) -> None:
        self._open.close()

    def _namespace(self) -> _Namespace:
        made = _Namespace()
        self._open.callback(made.close)
        return made

    def _plug_in(self, name: str, pid: int) -> None:
        """Lays a cable between the switch and the process's namespace, whose both ends have that name."""
        self._switch.ip("link", "add", name, "type", "veth", "peer", "name", name, "netns", str(pid))
        self._switch.ip("link", "set", name, "master", "switch", "up")

    def _remember_neighbour(self, name: str, address: str, namespace: _Namespace) -> None:
        """Packets to a host that was cut off vanish, as they do after a router: the kernel must not find out by ARP
        that no such neighbour is there."""
        hardware = namespace.ip("-brief", "link", "show", "dev", name).split()[2]
        _run(["ip", "neighbour", "replace", address, "lladdr", hardware, "nud", "permanent", "dev", self._interface])


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout


def listens(address: str, port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def processes_under(roots: Sequence[int]) -> list[int]:
    """Those processes and all their descendants that run now."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(parent, []).append(pid)
        children.setdefault(pid, [])
    found: list[int] = []
    waiting = [pid for pid in roots if pid in children]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting += children[pid]
    return found
