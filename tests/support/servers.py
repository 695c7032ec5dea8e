"""Services under gunicorn with any sort of worker, which the demo does not need."""

from collections.abc import Mapping
from pathlib import Path

from demo.processes import BIN, LOOPBACK, Server, free_port


def uwsgi_with(target: str, *options: str, log: Path, settings: Mapping[str, str], workers: int = 2) -> Server:
    """``target`` served by uWSGI's master and ``workers`` workers, on a free port of the loopback interface."""
    port = free_port()
    command = [str(BIN / "uwsgi"), "--http-socket", f"{LOOPBACK}:{port}", "--module", target, "--need-app"]
    command += ["--master", "--processes", str(workers), "--die-on-term", "--no-orphans", *options]
    return Server("uwsgi", command, url=f"http://{LOOPBACK}:{port}", log=log, settings=settings)


def gunicorn_with(
    sort: str, target: str, *, log: Path, settings: Mapping[str, str], preload: bool = False, workers: int = 2
) -> Server:
    """``target`` served by ``workers`` workers of that sort, on a free port of the loopback interface."""
    port = free_port()
    command = [str(BIN / "gunicorn"), target, "--bind", f"{LOOPBACK}:{port}", "--no-control-socket"]
    command += ["--worker-class", sort, "--workers", str(workers), "--graceful-timeout", "5"]
    command += ["--threads", "8"] if sort == "gthread" else []
    command += ["--preload"] if preload else []
    command += ["--config", "python:tests.support.gevent_conf"] if preload and sort == "gevent" else []
    name = f"{sort}{'-preload' if preload else ''}"
    return Server(name, command, url=f"http://{LOOPBACK}:{port}", log=log, settings=settings)
