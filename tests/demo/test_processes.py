"""Ports for the processes of the demo and the tests."""

import socket
import subprocess
import sys

import pytest

from demo.processes import LOOPBACK, RESERVED, ROOT, free_port


@pytest.mark.skipif(sys.platform != "linux", reason="ports are reserved on Linux alone")
def test_a_free_port_is_given_to_nothing_else_and_a_server_binds_it() -> None:
    ports = {free_port() for _ in range(RESERVED)}
    assert len(ports) == RESERVED
    with socket.create_server((LOOPBACK, ports.pop())) as other:
        for _ in range(50):
            with socket.create_connection(other.getsockname()) as outgoing, other.accept()[0]:
                assert outgoing.getsockname()[1] not in ports
            with socket.socket() as searching:
                searching.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                searching.bind((LOOPBACK, 0))
                assert searching.getsockname()[1] not in ports
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port))
        socket.create_server((LOOPBACK, port)).close()


def test_a_preferred_port_on_which_another_program_listens_is_not_given() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        taken = other.getsockname()[1]
        assert free_port(taken) != taken


@pytest.mark.skipif(sys.platform != "linux", reason="ports are reserved on Linux alone")
def test_a_preferred_port_that_another_process_has_reserved_is_not_given() -> None:
    ours = free_port()
    asking = f"from demo.processes import free_port; print(free_port({ours}))"
    given = subprocess.run([sys.executable, "-c", asking], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(given) != ours
