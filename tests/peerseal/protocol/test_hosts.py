"""What a host in a URL means: this machine, or another one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerseal.protocol.hosts import is_loopback_host, is_usable_url, is_valid_host, may_be_other_machine


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1", "LocalHost", "a.b.localhost."]
)
def test_loopback(host: str) -> None:
    assert is_loopback_host(host)
    assert not may_be_other_machine(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", None, "127.1", "0x7f.1", "2130706433", "localhost.test", "xlocalhost", ".localhost", "a..localhost"),
        *("localhost\n", "127.0.0.1\n", "evil.test#.localhost", "evil.test%00.localhost", "0.0.0.0", "10.0.0.1"),
    ],
)
def test_what_only_looks_like_it(host: str | None) -> None:
    assert not is_loopback_host(host)


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_every_address_of_127_is_loopback_in_ipv6_too(address: object) -> None:
    assert is_loopback_host(str(address))
    assert is_loopback_host(f"[::ffff:{address}]")


@given(
    st.sampled_from(["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"]).flatmap(
        lambda net: st.ip_addresses(network=net)
    )
)
def test_private_addresses_are_other_machines(address: object) -> None:
    assert may_be_other_machine(str(address))
    assert not is_loopback_host(str(address))


@given(st.text(max_size=40) | st.from_regex(r"\[?[0-9a-fx:.%]{1,40}\]?", fullmatch=True))
def test_no_text_raises_anything(host: str) -> None:
    assert not (is_loopback_host(host) and may_be_other_machine(host))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://a",
            "https://a_b.c-d.:443/x",
            "https://10.0.0.1:1",
            "https://[::1]",
            "https://[fe80::1%25eth0]:8443/",
        ),
        *("http://[::ffff:10.0.0.1]/", "https://localhost"),
    ],
)
def test_a_url_at_which_a_server_can_be_asked(url: str) -> None:
    assert is_usable_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "https://", "https://:1", "https://.", "https://a..b", "https://a:0", "https://a:65536", "https://a:1:2"),
        *("https://a[::1]", "https://[::1]a", "https://][::1]", "https://a[::1]:443", "https://[::1", "https://[v1.a]"),
        *(
            "https://[1:2]",
            "https://[g::1]",
            "https://*.a",
            "https://a*b",
            "https://a%41",
            "https://<a>",
            'https://"a"',
        ),
        *("https://@a", "https://:w0rd@a", "https://a b", "https://a\\b", f"https://{'a' * 64}"),
    ],
)
def test_a_url_at_which_none_can(url: str) -> None:
    assert not is_usable_url(url)


@given(st.text(max_size=40) | st.from_regex(r"https?://[\[\]:@a.%0-9]{1,20}", fullmatch=True))
def test_no_url_raises_anything(url: str) -> None:
    assert is_usable_url(url) in (True, False)
    assert is_valid_host(url, None) in (True, False)
