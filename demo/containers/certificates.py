"""A certificate authority for the servers of docker-compose.yml, and their certificates.

``python -m demo.containers.certificates FOLDER`` makes all certificates if one is missing or ends within a month.
Clients check TLS with ``FOLDER/authority/authority.pem``, Java clients with ``authority.p12`` in the same folder, and
``FOLDER/NAME/NAME.pem`` holds key and certificate of one server and belongs to its user. The authority's own key is
not written.
"""

import datetime
import ipaddress
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from demo.domain import LOGIN_ISSUER

LIFETIME: Final = datetime.timedelta(days=398)
"""The lifetime that public authorities grant."""
RENEWED: Final = datetime.timedelta(days=30)
"""The time before the end at which new ones are made."""


@dataclass(frozen=True, slots=True)
class ServerName:
    """A server, the further names under which it is called, and the user whose process reads its key."""

    name: str
    uid: int
    aliases: tuple[str, ...] = ()


SERVERS: Final = (
    ServerName("registry", 10001),
    ServerName("login", 10001, (LOGIN_ISSUER.removeprefix("https://"),)),
    ServerName("kafka", 1000),
    ServerName("partner-registry", 10001),
)


def main(root: Path, now: datetime.datetime) -> int:
    """Make the certificates if necessary; → the exit code."""
    if all(is_good(file, now) for file in files(root)):
        return 0
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peerseal demo")])
    authority = (
        certificate(name, name, key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    for server in SERVERS:
        own = ec.generate_private_key(ec.SECP256R1())
        signed = server_certificate(server, own.public_key(), authority, now).sign(key, hashes.SHA256())
        write(root / server.name / f"{server.name}.pem", [_pem(own), _public_pem(signed)], 0o400, server.uid)
    write(root / "authority/authority.p12", [_java_truststore(authority)], 0o444)
    write(
        root / "authority/authority.pem", [_public_pem(authority)], 0o444
    )  # written last: it shows that all are complete
    return 0


def files(root: Path) -> list[Path]:
    """All certificates."""
    return [root / name / f"{name}.pem" for name in ("authority", *(server.name for server in SERVERS))]


def is_good(file: Path, now: datetime.datetime) -> bool:
    """Whether its certificate exists and does not end soon."""
    return file.exists() and x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc > now + RENEWED


def certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    """The fields of every certificate."""
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def server_certificate(
    server: ServerName, key: ec.EllipticCurvePublicKey, authority: x509.Certificate, now: datetime.datetime
) -> x509.CertificateBuilder:
    """The certificate of a server, for all its names and for loopback."""
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in (server.name, *server.aliases, "localhost")]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    signer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
        authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server.name)])
    return (
        certificate(subject, authority.subject, key, now)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(usage(signs_certificates=False), critical=True)
        .add_extension(signer, critical=False)
    )


def usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """An authority's key signs certificates, a server's key signs its handshakes."""
    ca = signs_certificates
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


def write(file: Path, parts: list[bytes], mode: int, uid: int | None = None) -> None:
    """Replaces an older file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
        new.write(b"".join(parts))
        os.fchmod(new.fileno(), mode)
        if uid is not None and os.geteuid() == 0:
            os.fchown(new.fileno(), uid, -1)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8  # Kafka reads PKCS #12
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _java_truststore(authority: x509.Certificate) -> bytes:
    """Without a password: the file has no secret."""
    entry = pkcs12.PKCS12Certificate(authority, b"authority")
    return pkcs12.serialize_java_truststore([entry], serialization.NoEncryption())


def _public_pem(made: x509.Certificate) -> bytes:
    return made.public_bytes(serialization.Encoding.PEM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), datetime.datetime.now(datetime.UTC)))
