"""gunicorn's lines as JSON: what an access line tells, and what it leaves out."""

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from peerseal.errors import ConfigurationError
from peerseal.gunicorn import Logger

ENVIRON = {
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/profiles/7?token=hunter2secret",
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_AUTHORIZATION": "Bearer hunter2secret",
    "HTTP_REFERER": "https://example.com/?hunter2secret",
    "HTTP_TRACEPARENT": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


def lines_of(capsys: pytest.CaptureFixture[str], environ: Any = ENVIRON, accesslog: str | None = "-") -> list[str]:
    """What gunicorn's logger writes of one request."""
    cfg = Config()
    cfg.set("accesslog", accesslog)
    response = SimpleNamespace(status="200 OK", sent=12, headers=[("X-Request-Id", "r-7")])
    request = SimpleNamespace(headers=[])
    Logger(cfg).access(response, request, environ, timedelta(milliseconds=5))
    return capsys.readouterr().out.splitlines()


def test_an_access_line_names_status_time_request_and_trace_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERSEAL_LOG_FORMAT", "json")
    monkeypatch.setenv("PEERSEAL_SERVICE", "shop")
    (line,) = lines_of(capsys)
    assert "hunter2secret" not in line
    found = json.loads(line)
    assert found.pop("time")
    assert found == {
        "level": "INFO",
        "logger": "gunicorn.access",
        "service": "shop",
        "message": "GET /profiles/7 200",
        "method": "GET",
        "path": "/profiles/7",
        "status": 200,
        "bytes": 12,
        "seconds": 0.005,
        "address": "192.0.2.7",
        "request_id": "r-7",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
    }


def test_there_are_access_lines_only_where_gunicorn_is_asked_for_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEERSEAL_LOG_FORMAT", "json")
    assert lines_of(capsys, accesslog=None) == []


def test_by_default_a_line_is_gunicorn_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines_of(capsys, {**ENVIRON, "SERVER_PROTOCOL": "HTTP/1.1", "RAW_URI": "/profiles/7"})
    assert line.startswith("192.0.2.7 - - [")
    assert '"GET /profiles/7 HTTP/1.1" 200 12' in line


def test_another_value_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERSEAL_LOG_FORMAT", "yaml")
    with pytest.raises(ConfigurationError, match="PEERSEAL_LOG_FORMAT"):
        Logger(Config())
