"""Log lines as JSON: members, ids of request and trace, and no secret whatever a program logs."""

import io
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

import peerseal.logs
from peerseal.errors import ConfigurationError
from peerseal.runtime.log_lines import JsonFormatter, fields, json_wanted, without_secrets
from peerseal.runtime.settings import SettingsReader
from peerseal.verify.context import serving
from tests.support.keys import key

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def lines_of(work: Callable[[logging.Logger], object]) -> list[dict[str, Any]]:
    """What a logger writes as JSON while ``work`` runs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("billing"))
    handler.addFilter(peerseal.logs.RequestContextFilter())
    log = logging.getLogger("an.application.in.json")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        work(log)
    finally:
        log.removeHandler(handler)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_time_level_logger_service_message_and_fields() -> None:
    (line,) = lines_of(lambda log: log.warning("paid %d", 7, extra=fields(code="paid", amount=7, none=None)))
    assert line.pop("time")[-1] == "Z"
    assert line == {
        "level": "WARNING",
        "logger": "an.application.in.json",
        "service": "billing",
        "message": "paid 7",
        "code": "paid",
        "amount": 7,
    }


def test_a_line_of_a_request_has_its_id_and_the_ids_of_its_trace() -> None:
    def work(log: logging.Logger) -> None:
        with serving("r-1", TRACEPARENT):
            log.info("said")

    (line,) = lines_of(work)
    assert line["request_id"] == "r-1"
    assert (line["trace_id"], line["span_id"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def test_quoted_text_forges_no_line_and_an_exception_is_a_member() -> None:
    def work(log: logging.Logger) -> None:
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            log.exception('a\n{"level":"forged"} \x1b[2J')

    (line,) = lines_of(work)
    assert line["message"] == 'a\n{"level":"forged"} \x1b[2J'
    assert line["exception"].endswith("ValueError: one\ntwo")


@pytest.mark.parametrize(
    "secret",
    [
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJ4In0.c2lnbmF0dXJl",
        "psj1.id7.hunter2secret.pin",
        "pso1.id7.hunter2secret",
        "Basic aHVudGVyMjpzZWNyZXQ=",
        "bearer opaque-hunter2secret",
    ],
)
def test_what_looks_like_a_secret_is_removed_from_messages_fields_and_tracebacks(secret: str) -> None:
    def work(log: logging.Logger) -> None:
        try:
            raise ValueError(f"bad {secret}!")
        except ValueError:
            log.exception("header %s!", secret, extra=fields(code=f"<{secret}>"))

    (line,) = lines_of(work)
    assert secret not in json.dumps(line)
    assert line["message"] == "header [removed]!"


def test_a_password_in_a_url_and_a_private_key_are_removed() -> None:
    assert without_secrets("redis://u:p4ss@host:6379/0 refused") == "redis://[removed]@host:6379/0 refused"
    pem = key().to_pem().decode()
    assert without_secrets(f"key: {pem}") == "key: [removed]\n"
    assert without_secrets(pem[: len(pem) // 2]) == "[removed]"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("postgresql://u:p@ss@h/db", "postgresql://[removed]@h/db"),
        ("'redis://u:pa'ss@h'", "'redis://[removed]@h'"),
        ("postgresql://u@h/db?password=hunter2&x=1", "postgresql://u@h/db?[removed]&x=1"),
        ("host=h password=hunter2 user=u", "host=h [removed] user=u"),
        ("tokeneyJhbGciOiJFUzI1NiJ9.e30.c2ln!", "token[removed]!"),
        ("http://a:80/x mailto:u@v", "http://a:80/x mailto:u@v"),
    ],
)
def test_secrets_are_found_where_something_stands_before_them(text: str, left: str) -> None:
    assert without_secrets(text) == left


@pytest.mark.parametrize(
    "piece",
    [
        "://:",
        ":",
        "eyJ",
        "eyJ.",
        "a.",
        "-----BEGIN ",
        "PRIVATE KEY",
        "-----END A",
        "psj1.",
        "bearer ",
        "password=",
        "@",
    ],
)
@pytest.mark.parametrize("start", ["", "://", "eyJ", "-----BEGIN ", "-----BEGIN PRIVATE KEY-----"])
def test_no_text_of_a_caller_takes_long(start: str, piece: str) -> None:
    """100,000 characters of ``://::::`` took minutes, in which no other request was answered."""
    began = time.perf_counter()
    without_secrets(start + piece * (100_000 // len(piece)))
    assert time.perf_counter() - began < 5  # some milliseconds


def test_ids_digests_and_urls_stay() -> None:
    plain = "kid test.internal/client/4GqP_2-x; https://registry:8080/v1/keys?seq=7; user ada@example.com; basic rule"
    assert without_secrets(plain) == plain


def test_the_setting_is_text_by_default_and_any_other_value_is_refused_by_name() -> None:
    def wanted(**given: str) -> bool:
        return json_wanted(SettingsReader(given), "PEERSEAL_LOG_FORMAT")

    assert not wanted()
    assert not wanted(PEERSEAL_LOG_FORMAT="text")
    assert wanted(PEERSEAL_LOG_FORMAT="JSON")
    with pytest.raises(ConfigurationError, match="PEERSEAL_LOG_FORMAT='yaml': expected one of text, json"):
        wanted(PEERSEAL_LOG_FORMAT="yaml")


def test_the_formatter_of_a_service_names_it() -> None:
    made = peerseal.logs.formatter(environ={"PEERSEAL_LOG_FORMAT": "json", "PEERSEAL_SERVICE": "shop"})
    record = logging.LogRecord("shop", logging.INFO, "", 0, "up", (), None)
    assert json.loads(made.format(record))["service"] == "shop"
