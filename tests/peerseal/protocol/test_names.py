"""Names: trust domains, services, service ids and kids, read strictly."""

import pytest

from peerseal.errors import InvalidName
from peerseal.protocol import names

THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"  # RFC 7638 section 3.1

GOOD = ["a", "0", "billing", "billing.invoices", "a-b", "a--b", "x1.y2.z3", "a" * 63]
BAD = [
    "", ".", "-", "-a", "a-", ".a", "a.", "a..b", "a.-b", "..", "a/b", "a/../b", "a\\b", "%2e", "a%2fb", "A",
    "Billing", "a_b", "a'b", 'a"b', "a;b", "a?b", "a#b", "a:b", "*", "a b", " a", "a ", "a\n", "\na", "a\0",
    "é", "ａ", "а", "a" * 64,
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_names_are_given_back(name: str) -> None:
    assert names.check_service(name) == name
    assert names.check_trust_domain(name) == name
    assert names.split_service_id(f"{name}/{name}") == (name, name)


@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_refused_wherever_they_stand(name: str) -> None:
    for check in (names.check_service, names.check_trust_domain):
        with pytest.raises(InvalidName):
            check(name)
    for service_id in (f"{name}/client", f"test.internal/{name}"):
        with pytest.raises(InvalidName):
            names.split_service_id(service_id)
    for kid in (f"{name}/client/{THUMBPRINT}", f"test.internal/{name}/{THUMBPRINT}", f"test.internal/client/{name}"):
        with pytest.raises(InvalidName):
            names.split_kid(kid)


def test_a_refused_name_is_also_a_value_error_and_quoted_in_part_only() -> None:
    with pytest.raises(ValueError, match="not a service") as caught:
        names.check_service("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_lengths_have_their_limits() -> None:
    label = "a" * 49
    assert names.check_service(f"{label}.{label}a")
    with pytest.raises(InvalidName):
        names.check_service(f"{label}.{label}aa")
    domain = ".".join(["a" * 50] * 4) + "." + "a" * 49
    assert len(domain) == 253
    assert names.check_trust_domain(domain)
    with pytest.raises(InvalidName):
        names.check_trust_domain(domain + "a")
    assert names.split_kid(f"{domain}/{label}.{label}a/{THUMBPRINT}")


def test_the_registrys_own_name_is_a_name() -> None:
    assert names.check_service(names.REGISTRY) == "registry"
    assert names.registry_id("test.internal") == "test.internal/registry"


def test_a_kid_is_taken_apart_and_put_together() -> None:
    kid = f"test.internal/billing.invoices/{THUMBPRINT}"
    assert names.split_kid(kid) == ("test.internal/billing.invoices", THUMBPRINT)
    assert names.make_kid("test.internal/billing.invoices", THUMBPRINT) == kid


SPOILT = [
    *(THUMBPRINT[:-1] + end for end in ("", "s=", "sA", "s\n", "t", "\0", "%")),
    *(THUMBPRINT.replace("-", "+"), THUMBPRINT.replace("_", "/"), "..", "%2e%2e", "http://evil.example"),
]


@pytest.mark.parametrize("thumbprint", SPOILT)
def test_a_thumbprint_is_the_canonical_base64url_of_32_bytes(thumbprint: str) -> None:
    with pytest.raises(InvalidName):
        names.split_kid(f"test.internal/client/{thumbprint}")
    with pytest.raises(InvalidName):
        names.make_kid("test.internal/client", thumbprint)


def test_ten_kilobytes_are_no_kid_and_cost_nothing() -> None:
    with pytest.raises(InvalidName):
        names.split_kid("a." * 5000 + f"/client/{THUMBPRINT}")


def test_a_short_name_stands_for_a_service_of_the_own_domain_and_an_id_for_itself() -> None:
    assert names.qualify("client", "test.internal") == "test.internal/client"
    assert names.qualify("other.internal/client", "test.internal") == "other.internal/client"
    for name in ("", "a/b/c", "Client", "other.internal/"):
        with pytest.raises(InvalidName):
            names.qualify(name, "test.internal")


def test_a_refusal_of_a_name_says_what_is_expected() -> None:
    shape = "lower-case letters, digits and hyphens in labels joined by dots"
    with pytest.raises(InvalidName) as told:
        names.check_service("Billing_1")
    expected = f"expected {shape}, 100 characters at most, such as billing"
    assert str(told.value) == f"not a service name: 'Billing_1', {expected}"
    with pytest.raises(InvalidName) as told:
        names.check_trust_domain("Partner Example")
    assert str(told.value).endswith(f"expected {shape}, 253 characters at most, such as partner.example")
