"""A volume that is mounted read-only, or is full: each command names that, and not the folder's owner."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peerseal.identity.key_folder import KeyFolder, StoredKey, StoredKeys
from peerseal.protocol.keys import KeyPair

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can mount a file system"
)
SCRIPT = """
mount -t tmpfs -o size=256k,mode=0700 tmpfs "$0" && cp -a "$1/keys" "$0" && {change} && shift && exec "$@"
"""
READ_ONLY = 'mount -o remount,ro "$0"'
FULL = '{ head -c 1m /dev/zero >"$0/full" 2>/dev/null || true; }'

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The exit code and the words of a command on a host whose key folder is on such a volume, and whose registry is
    gone."""
    pair = KeyPair.generate("ES256")
    key = StoredKey(f"acme.internal/billing/{pair.public.thumbprint}", pair, 1.0, 1.0, time.time() + 3600)
    folder = KeyFolder(tmp_path / "made/keys/billing")
    folder.hold()
    with folder.locked():
        folder.save(StoredKeys(keys=(key,)))
    folder.release()
    (tmp_path / "volume").mkdir()

    def run(change: str, *command: str) -> tuple[int, str, str]:
        own = {
            "PEERSEAL_SERVICE": "billing",
            "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1",
            "PEERSEAL_KEY_DIR": str(tmp_path / "volume/keys"),
        }
        inside = [str(tmp_path / "volume"), str(tmp_path / "made"), sys.executable, "-m", "peerseal", *command]
        ended = subprocess.run(
            ["unshare", "--mount", "sh", "-c", SCRIPT.replace("{change}", change), *inside],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "mount:" in ended.stderr or "unshare:" in ended.stderr:
            pytest.skip(ended.stderr)
        return ended.returncode, " ".join(ended.stdout.split()), ended.stderr

    return run


@pytest.mark.parametrize(
    ("change", "says"), [(READ_ONLY, "is on a read-only file system"), (FULL, "is on a full file system")]
)
def test_the_doctor_names_the_file_system(run: Run, change: str, says: str) -> None:
    code, shown, errors = run(change, "doctor")
    assert (code, errors) == (3, "")
    assert says in shown


def test_whoami_shows_the_keys_of_a_read_only_volume(run: Run) -> None:
    code, shown, errors = run(READ_ONLY, "whoami", "--offline")
    assert (code, errors) == (0, "")
    assert "keys whether a process uses them is not known: " in shown
    assert "on a read-only file system" in shown
    assert "current; at the registry: not known" in shown


def test_a_key_that_a_full_volume_cannot_take_is_no_wrong_usage(run: Run, tmp_path: Path) -> None:
    code, _, errors = run(FULL, "keygen", str(tmp_path / "volume/key.pem"), "--alg", "ES256")
    assert (code, errors) == (1, f"Error: {tmp_path / 'volume'}: No space left on device\n")
