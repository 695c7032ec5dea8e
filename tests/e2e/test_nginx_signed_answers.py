"""Signed answers through a real nginx: one that passes them on, and one that changes them, which the caller names."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from peerseal.errors import ResponseRefused
from peerseal.requests import ResponseRefusedError
from tests.support.nginx import nginx_command
from tests.support.processes import LOOPBACK, Process, free_port
from tests.support.signed_answers import ARCHIVE, ARCHIVE_TAG, BODY, CALLEE, WAYS, Way, World, signing_service

pytestmark = [pytest.mark.e2e, pytest.mark.nginx, pytest.mark.thorough]

HTTP = """
    proxy_cache_path {folder}/cache keys_zone=answers:1m;
    server {{ listen {caching}; proxy_cache answers; location / {{ proxy_pass {service}; proxy_http_version 1.1; }} }}
    server {{ listen {plain}; location / {{ proxy_pass {service}; proxy_http_version 1.1; }} }}
    server {{ listen {zipping}; gzip on; gzip_min_length 1; gzip_proxied any; gzip_types application/json;
        location / {{ proxy_pass {service}; proxy_http_version 1.1; }}
        location = /gone {{ proxy_pass http://127.0.0.1:1; }} }}
"""


class Site(NamedTuple):
    """A service, and the URLs of three nginx in front of it."""

    world: World
    plain: str
    zipping: str
    caching: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, ports = tmp_path_factory.mktemp("nginx"), {name: free_port() for name in ("plain", "zipping", "caching")}
    with signing_service() as world:
        command = nginx_command(folder, HTTP.format(**ports, folder=folder, service=world.url))
        urls = [f"http://{LOOPBACK}:{port}" for port in ports.values()]
        with Process("nginx", command, log=folder / "log") as process:
            process.wait_until_answers(f"{urls[0]}/public")
            yield Site(world, *urls)


@pytest.mark.parametrize("path", ["/orders", "/stream", "/zipped", "/moved", "/status/404", "/status/204"])
@pytest.mark.parametrize("call", WAYS)
def test_a_proxy_that_passes_answers_on_leaves_them_proven(site: Site, call: Way, path: str) -> None:
    site.world.url = site.plain
    assert call(site.world, path).status in (200, 204, 404)


@pytest.mark.parametrize("call", WAYS)
def test_a_proxy_that_passes_parts_and_lengths_on_leaves_them_proven(site: Site, call: Way) -> None:
    site.world.url = site.plain
    assert call(site.world, "/archive", headers={"Range": "bytes=0-4"}).body == ARCHIVE[:5]
    assert call(site.world, "/archive", "HEAD").headers["Content-Length"] == str(len(ARCHIVE))
    assert call(site.world, "/archive", headers={"If-None-Match": ARCHIVE_TAG}).status == 304
    assert call(site.world, "/zipped", "HEAD").status == 200


@pytest.mark.parametrize("name", ["Range", "If-None-Match"])
@pytest.mark.parametrize("call", WAYS)
def test_a_cache_that_takes_away_what_chooses_the_answer_gets_none(site: Site, call: Way, name: str) -> None:
    site.world.url = site.caching
    with pytest.raises(ResponseRefused) as refused:
        call(site.world, "/archive", headers={name: ARCHIVE_TAG})
    assert (refused.value.code, refused.value.answered) == ("unsigned_response", 401)


def test_a_proxy_that_compresses_is_found_and_named(site: Site) -> None:
    with (
        site.world.caller.session(CALLEE, site.zipping, require_signed_response=True, retries=0) as session,
        pytest.raises(ResponseRefusedError, match="compress") as refused,
    ):
        session.get("/orders")
    assert refused.value.code == "wrong_binding"
    assert "nginx" in str(refused.value)
    with site.world.caller.session(CALLEE, site.zipping) as session:
        assert session.get("/orders").content == BODY


def test_an_error_page_of_a_proxy_is_unsigned_and_names_it(site: Site) -> None:
    with (
        site.world.caller.session(CALLEE, site.zipping, require_signed_response=True, retries=0) as session,
        pytest.raises(ResponseRefusedError, match=r"status 502 .*a proxy in front .*nginx") as refused,
    ):
        session.get("/gone")
    assert (refused.value.code, refused.value.answered) == ("unsigned_response", 502)
