"""``/docs/errors``: the page of the error codes."""

import re

import yaml

from tests.registry.driver import Driver
from tools.error_codes import MADE


def test_each_code_has_a_row_with_its_causes_and_its_remedy(registry: Driver) -> None:
    answer = registry.client.get("/docs/errors")
    assert (answer.status_code, answer.content_type) == (200, "text/html; charset=utf-8")
    codes = [row["code"] for section in yaml.safe_load(MADE.read_text()) for row in section["codes"]]
    assert len(codes) > 100
    assert re.findall(r'<tr id="([a-z0-9_]+)">', answer.text) == codes
    assert "Create a join token" in answer.text or "create another" in answer.text
    assert "`" not in answer.text
    assert "](" not in answer.text


def test_the_page_runs_nothing_and_is_cached(registry: Driver) -> None:
    answer = registry.client.get("/docs/errors")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert re.findall(r'href="([^"]+)"', answer.text) == ["../docs"]
    again = registry.client.get("/docs/errors", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
