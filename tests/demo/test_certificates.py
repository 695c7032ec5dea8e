"""The certificates of docker-compose.yml: made once, renewed in time, and good for TLS."""

import datetime
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from demo.containers.certificates import LIFETIME, SERVERS, files, main

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    assert main(tmp_path, NOW) == 0
    return tmp_path


def contents(root: Path) -> list[bytes]:
    return [file.read_bytes() for file in files(root)]


def handshake(root: Path, server: str, name: str) -> str | None:
    """The TLS version on which a client that trusts the authority and the server ``name`` agree. Raises SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(root / server / f"{server}.pem")
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            context.wrap_socket(theirs, server_side=True).close()
        except OSError:  # the client hung up
            theirs.close()

    serving = threading.Thread(target=serve)
    serving.start()
    client = ssl.create_default_context(cafile=root / "authority/authority.pem")
    try:
        with client.wrap_socket(ours, server_hostname=name) as connection:
            return connection.version()
    finally:
        ours.close()
        serving.join()


@pytest.mark.parametrize(
    ("server", "name"), [("registry", "registry"), ("registry", "127.0.0.1"), ("login", "login.demo.internal")]
)
def test_a_client_that_knows_the_authority_believes_each_server_by_its_names(
    made: Path, server: str, name: str
) -> None:
    assert handshake(made, server, name) == "TLSv1.3"


def test_no_server_passes_for_another_one(made: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(made, "login", "registry")


def test_the_next_start_makes_nothing(made: Path) -> None:
    before = contents(made)
    main(made, NOW + datetime.timedelta(days=300))
    assert contents(made) == before


def test_all_are_made_again_a_month_before_their_end(made: Path) -> None:
    before = contents(made)
    main(made, NOW + LIFETIME - datetime.timedelta(days=29))
    assert all(old != new for old, new in zip(before, contents(made), strict=True))


def test_all_are_made_again_where_one_is_missing(made: Path) -> None:
    before = contents(made)
    (made / "kafka/kafka.pem").unlink()
    main(made, NOW)
    assert all(old != new for old, new in zip(before, contents(made), strict=True))


def test_a_key_is_its_servers_to_read_and_the_authoritys_own_is_nowhere(made: Path) -> None:
    for server in SERVERS:
        assert (made / server.name / f"{server.name}.pem").stat().st_mode & 0o777 == 0o400
    public = [file for file in (made / "authority").iterdir() if b"PRIVATE KEY" not in file.read_bytes()]
    assert sorted(file.name for file in public) == ["authority.p12", "authority.pem"]
    assert len([file for file in made.rglob("*.*") if file.is_file()]) == 2 + len(SERVERS)


def test_openssl_accepts_the_chain_strictly(made: Path) -> None:
    for server in SERVERS:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", made / "authority/authority.pem"]
        subprocess.run([*command, made / server.name / f"{server.name}.pem"], check=True, capture_output=True)
