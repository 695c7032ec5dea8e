"""A client of the last release, and what a newer registry tells it."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import peerseal
from demo.processes import environment
from tests.support.released import released_code
from tests.support.stack import Stack

ASK = """
import sys
import peerseal
folder, url, kid = sys.argv[1:]
assert peerseal.__file__.startswith(folder)
try:
    print("good", peerseal.TrustStore(url).key(kid).kid == kid)
except peerseal.PeersealError as error:
    print(error.code)
"""


def test_it_knows_no_key_of_a_key_set_in_parts(tmp_path: Path) -> None:
    code = released_code(tmp_path / "released")

    def answer(kid: str) -> str:
        command = [sys.executable, "-c", ASK, str(code), domain.registry_url, kid]
        asked = subprocess.run(
            command, cwd=code, env=environment({}), capture_output=True, encoding="utf-8", check=True, timeout=60
        )
        return asked.stdout.strip()

    with Stack(tmp_path / "domain") as domain, ExitStack() as stopped:
        domain.registry_settings["REGISTRY_KEYS_IN_SET"] = "1"
        domain.start_registry(workers=1)
        kids = []
        for host in ("one", "two"):
            joining, folder = domain.join_token("caller"), tmp_path / host
            caller = peerseal.Identity(
                "caller", registry=domain.registry_url, join_token=joining, key_dir=folder, alg="ES256"
            )
            stopped.callback(caller.start().stop)
            kids.append(caller.credentials.key_id)
            if host == "one":
                assert answer(kids[0]) == "good True", "a set within the limit is as ever"
        assert [answer(kid) for kid in kids] == ["unknown_key", "unknown_key"]
