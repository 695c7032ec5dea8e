"""``/`` leads on."""

import re

from tests.registry.driver import DOMAIN, Driver


def test_a_registry_without_a_console_says_what_it_is_and_where_to_look(registry: Driver) -> None:
    answer = registry.client.get("/")
    assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8")
    assert DOMAIN in answer.text
    links = re.findall(r'href="([^"]+)"', answer.text)
    assert len(links) == 4
    assert [link for link in links if registry.client.get(f"/{link}").status_code != 200] == []
    assert "script" not in answer.headers["Content-Security-Policy"]


def test_with_a_console_it_leads_there(registry: Driver) -> None:
    node = registry.node(console=True)
    answer = node.client.get("/")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/console/")
    node.close()
