"""The domain document of docker-compose.yml: ``python -m demo.containers.settings AUTHORITY`` prints it for
``peerseal-registry domain set -``. The issuer's keys come from the identity provider; that authority signed its TLS
certificate."""

import json
import sys
from pathlib import Path
from typing import Any

from demo.domain import CLIENT, INVOICING, LEGACY, LOGIN_ISSUER, domain_settings

KAFKA = {"audience": "https://kafka.demo.internal", "services": [CLIENT, INVOICING, LEGACY], "scopes": ["kafka"]}
"""The services that may log in at the broker."""


def settings(authority: Path) -> dict[str, Any]:
    """The whole domain document."""
    login = {"ca": authority.read_text("ascii"), "introspection_url": f"{LOGIN_ISSUER}/introspect"}
    return domain_settings(login, access_tokens={"kafka": KAFKA})


if __name__ == "__main__":
    print(json.dumps(settings(Path(sys.argv[1]))))
