"""A real nginx, with a configuration and files in a folder of its own."""

import os
import shutil
from pathlib import Path

import pytest

_CONF = """{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{http}
}}
"""


def nginx_command(folder: Path, http: str, connections: int = 512) -> list[str]:
    """The command of an nginx whose block ``http`` holds these lines, with that many ``connections`` at most. Skips the
    test where there is no nginx."""
    user = "user root;" if os.geteuid() == 0 else ""  # no other user can read the folder
    conf = folder / "nginx.conf"
    conf.write_text(_CONF.format(user=user, folder=folder, http=http, connections=connections))
    return [_program(), "-p", str(folder), "-c", str(conf), "-e", str(folder / "error.log")]


def _program() -> str:
    """nginx, at each place where Debian may install it. In CI its absence is a failure: no other test would show it."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is not None:
        return program
    missing = "the program nginx is not installed (Debian: apt-get install nginx-light)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)
