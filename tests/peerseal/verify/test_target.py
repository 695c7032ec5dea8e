"""A target is accepted only in origin form, and only where it decodes to exactly what was routed."""

from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerseal.errors import ConfigurationError, WrongBinding
from peerseal.verify.target import check_external_prefix, routed_target
from peerseal.wsgi import wsgi_target


def as_wsgi(path: str) -> str:
    """PATH_INFO as gunicorn makes it of a raw path."""
    return unquote_to_bytes(path).decode("latin-1")


@pytest.mark.parametrize(
    "raw",
    [
        "/",
        "/profiles/42",
        "/profiles/42?fields=name&x=%2f",
        "/a?",
        "/a??b",
        "//a",
        "/a//b",
        "/a/../b",
        "/a/%2e%2e/b",
        "/a%2fb",
        "/a%2Fb",
        "/%7euser",
        "/~user",
        "/a;v=1/b",
        "/caf%C3%A9",
        "/caf%c3%a9",
        "/%ff",
        "/%00",
        "/%zz",
        "/%",
        "/a%252fb",
        "/a+b",
        '/a"<>|^`{}\\b',
    ],
)
def test_the_target_is_the_request_line_s_own_however_it_is_spelt(raw: str) -> None:
    path = raw.partition("?")[0]
    assert routed_target(raw, "", as_wsgi(path)) == raw
    assert routed_target(raw, "", as_wsgi(path), "/api") == "/api" + raw


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "*",
        "a",
        "?a",
        "host:80",
        "http://host/a",
        "https://host/a",
        "/a#b",
        "/a?b#c",
        "/a b",
        "/a\tb",
        "/a\r\nb",
        "/a\x00b",
        "/a\x7fb",
        "/a\x80b",
        "/é",
        "/a\n",
    ],
)
def test_anything_but_origin_form_in_printable_ascii_is_refused(raw: str) -> None:
    for path_info in (raw, as_wsgi(raw) if raw.isascii() else raw, raw.split("#")[0], "/a", ""):
        with pytest.raises(WrongBinding):
            routed_target(raw, "", path_info)


@pytest.mark.parametrize(
    ("raw", "script_name", "path_info"),
    [
        ("/a/b", "", "/a"),
        ("/a", "", "/a/b"),
        ("/a/../b", "", "/b"),
        ("/a//b", "", "/a/b"),
        ("/a/", "", "/a"),
        ("/a%2fb", "", "/a%2fb"),
        ("/a%252fb", "", "/a/b"),
        ("/a;v=1", "", "/a"),
        ("/a?b", "", "/a?b"),
        ("/A", "", "/a"),
        ("/caf%C3%A9", "", "/café"),
        ("/caf%C3%A9", "", "/caf\u20ac"),
        ("/b", "/a", "/b"),
        ("/a/b", "/a/", "/b"),
        ("/a/b", "/a", "/a/b"),
    ],
)
def test_a_target_that_is_not_what_was_routed_is_refused(raw: str, script_name: str, path_info: str) -> None:
    with pytest.raises(WrongBinding):
        routed_target(raw, script_name, path_info)


def test_an_application_mounted_below_a_path_sees_the_whole_target() -> None:
    assert routed_target("/mount/a%20b?c", "/mount", "/a b") == "/mount/a%20b?c"


@given(st.text(alphabet=st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#?")), st.text())
def test_only_the_bytes_that_the_path_decodes_to_are_routed(path: str, routed: str) -> None:
    raw = "/" + path
    assert routed_target(raw, "", as_wsgi(raw)) == raw
    if routed != as_wsgi(raw):
        with pytest.raises(WrongBinding):
            routed_target(raw, "", routed)


def test_a_script_name_header_is_refused_because_servers_obey_it() -> None:
    environ = {"RAW_URI": "/admin/x", "SCRIPT_NAME": "/admin", "PATH_INFO": "/x"}
    assert wsgi_target(environ) == "/admin/x"
    with pytest.raises(WrongBinding, match="shifts"):
        wsgi_target(environ | {"HTTP_SCRIPT_NAME": "/admin"})


def test_request_uri_stands_in_for_raw_uri() -> None:
    assert wsgi_target({"REQUEST_URI": "/a%20b", "PATH_INFO": "/a b"}, "/api") == "/api/a%20b"


def test_a_server_that_hides_the_request_line_gets_everything_refused() -> None:
    with pytest.raises(WrongBinding, match="does not tell"):
        wsgi_target({"PATH_INFO": "/a", "SCRIPT_NAME": "", "QUERY_STRING": ""})


@pytest.mark.parametrize("prefix", ["", "/api", "/v1/api.internal", "/~x"])
def test_an_external_prefix_is_a_plain_path(prefix: str) -> None:
    assert check_external_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["api", "/", "/api/", "//api", "/a b", "/a?b", "/%61", "/a#", "http://host/api"])
def test_another_external_prefix_is_a_mistake(prefix: str) -> None:
    with pytest.raises(ConfigurationError):
        check_external_prefix(prefix)
