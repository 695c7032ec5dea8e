"""``peerseal keygen``: a key pair in a file, which ``peerseal join --key`` registers."""

import argparse
from pathlib import Path

from peerseal.commands.arguments import Subcommands, add_command
from peerseal.commands.own_identity import own_passphrase
from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.protocol.jose import ALGORITHMS
from peerseal.protocol.keys import DEFAULT_RSA_BITS, RSA_BITS, KeyPair
from peerseal.runtime.files import Access, Folder
from peerseal.runtime.settings import read_bytes
from peerseal.runtime.terminal import say, say_json
from peerseal.runtime.trusted_path import warn_of_others

_LARGEST = 64 * 1024
"""Bytes of a file with a private key; the longest one, RSA of 8192 bits, has 7 KiB."""


def add_keygen(commands: Subcommands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "keygen",
        _make_key,
        summary="make a key pair in a file",
        description="Writes a new private key to FILE (PKCS #8 in PEM, mode 0600) and prints its thumbprint. The file"
        " is encrypted with PEERSEAL_KEY_PASSPHRASE where that is set. peerseal join --key registers the key. A"
        " service needs no such file: it makes its keys by itself.",
        examples=("peerseal keygen billing.pem", "peerseal keygen billing.pem --alg ES256 --json"),
        exit_codes="0 done, 1 the disk refuses the file, 2 wrong usage, or the file exists",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a new file; an existing one is never replaced")
    parser.add_argument("--alg", choices=sorted(ALGORITHMS, reverse=True), default="RS256", help="[RS256]")
    parser.add_argument(
        "--bits",
        type=int,
        metavar="BITS",
        help=f"size of an RSA key, {RSA_BITS[0]} to {RSA_BITS[-1]} [{DEFAULT_RSA_BITS}]",
    )


def _make_key(arguments: argparse.Namespace) -> int:
    """Makes the key and prints its thumbprint. Raises ConfigurationError."""
    file, passphrase = arguments.file, own_passphrase()
    if file.exists() or file.is_symlink():
        raise _exists(file)
    if arguments.bits is not None and arguments.alg != "RS256":
        raise ConfigurationError(f"--bits is for RS256: a key for {arguments.alg} has one size")
    pair = KeyPair.generate(arguments.alg, DEFAULT_RSA_BITS if arguments.bits is None else arguments.bits)
    folder = Folder(file.absolute().parent, access=Access.COMMON, mode=None, tightens=False)
    try:
        if not folder.write_new(file.name, pair.to_pem(passphrase.password)):
            raise _exists(file)
    except FileNotFoundError as error:
        raise ConfigurationError(f"{file}: its folder does not exist") from error
    encrypted = passphrase.password is not None
    if arguments.as_json:
        shown = {"file": str(file), "alg": pair.public.alg, "thumbprint": pair.public.thumbprint}
        say_json({**shown, "encrypted": encrypted})
    else:
        say(f"private key  {file}, {'encrypted' if encrypted else 'not encrypted'}")
        say(f"thumbprint   {pair.public.thumbprint}")
    return 0


def pair_in(file: Path) -> KeyPair:
    """The key pair in a PEM file, decrypted with the passphrase of the environment. The file stays as it
    is: a mistyped name may be that of any file. A key that others can read or change is used with a warning. Raises
    ConfigurationError."""
    pem = read_bytes(file, str(file), _LARGEST)
    try:
        pair = own_passphrase().opened(pem, file, KeyPair.from_pem)
    except KeyRefused as error:
        raise ConfigurationError(
            f"{file} holds no key that a service may have: expected RSA of {RSA_BITS[0]} to {RSA_BITS[-1]} bits or"
            f" EC P-256, in PEM ({error})"
        ) from error
    warn_of_others(file, str(file), "private key")
    return pair


def _exists(file: Path) -> ConfigurationError:
    return ConfigurationError(f"{file} exists, and is left as it is: name a new file")
