"""A program with nothing but curl and `peerseal assertion` gets an access token, and a stock library verifies it: by
the very lines of the docs."""

import json
import re
import shutil
import subprocess

import pytest

from demo.processes import BIN, ROOT, environment
from tests.support.stack import DOMAIN, Stack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here"),
]

PAGE = (ROOT / "docs/how-to/access-tokens.md").read_text(encoding="utf-8")


def of_the_page(pattern: str) -> str:
    found = re.search(pattern, PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_lines_of_the_page_turn_it_on_get_a_token_and_verify_it(stack: Stack) -> None:
    stack.start_registry()
    file = stack.root / "domain.json"
    file.write_text(of_the_page(r"<<'JSON'\n(.+?)JSON\n"))
    stack.operate("domain", "set", str(file))
    found = environment(stack.service_settings("invoicing"))
    found["PATH"] = f"{BIN}:{found['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", of_the_page(r"```sh\n(.+?)```")]
    typed = subprocess.run(shell, env=found, capture_output=True, encoding="utf-8", timeout=60)
    assert typed.returncode == 0, typed.stderr + typed.stdout
    answer = json.loads(typed.stdout)
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 300, "kafka")
    defined: dict[str, object] = {}
    exec(of_the_page(r"```python\n(import jwt\n.+?)```"), defined)
    service_of = defined["service_of"]
    assert callable(service_of)
    assert service_of(answer["access_token"], stack.registry_url, DOMAIN) == f"{DOMAIN}/invoicing"
