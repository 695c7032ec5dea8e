"""How a key gets into the registry and out of it: the calls, and what to make of the answers (docs/protocol.md)."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    EnrolmentPending,
    EnrolmentRefused,
    FetchError,
    MalformedToken,
    PeersealError,
    TrustUnavailable,
)
from peerseal.identity.key_folder import HeldKey
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.tokens.oidc import MAX_TOKEN
from peerseal.protocol.tokens.proof import sign_proof
from peerseal.runtime.settings import read_text
from peerseal.session.problem import MAX_PROBLEM
from peerseal.transport.fetch import Answer, Fetcher, is_confidential, no_larger_than
from peerseal.trust.store import TrustStore

JSON = "application/json"


class SignsRequests(Protocol):
    """Signs a call to the registry with one key of ours."""

    def __call__(self, *, method: str, target: str, body: bytes, headers: dict[str, str]) -> str:
        """A request token for the registry."""


@dataclass(frozen=True, slots=True)
class PlatformToken:
    """What says, in a platform's name, which workload this is: a Kubernetes service-account token, a CI job's.

    ``get`` is asked anew at every join, because platforms replace such tokens long before a service's keys end.
    """

    get: Callable[[], str] = field(repr=False)

    @classmethod
    def of(cls, source: str | Callable[[], str]) -> Self:
        """From the text itself, which ends some day, or from what gives the newest one."""
        return cls(source) if callable(source) else cls(lambda: source)

    @classmethod
    def in_file(cls, path: str | os.PathLike[str], name: str = "the platform's token") -> Self:
        """From the file in which the platform keeps the newest one; ``name`` is what errors call it."""

        def read() -> str:
            text = read_text(Path(path), name) or ""
            if not text.isascii() or not text:
                raise ConfigurationError(f"{name}={path}: cannot be read as a token: empty, or no ASCII text")
            return text

        return cls(read)

    def text(self) -> str:
        """The token as it is now, blank space around it ignored. Raises ConfigurationError, which never quotes it."""
        token = self.get().strip()
        if not token or not token.isascii() or len(token) > MAX_TOKEN:
            raise ConfigurationError("the platform's token is empty, longer than one may be, or none at all")
        return token


class Enrolment:
    """The dealings of one service with its registry. ``service`` is the short name."""

    def __init__(self, service: str, trust: TrustStore, clock: Callable[[], float]) -> None:
        self._service = service
        self._trust = trust
        self._clock = clock

    @property
    def _fetcher(self) -> Fetcher:
        return self._trust.fetcher

    def join(self, key: KeyPair, token: JoinToken | PlatformToken | None) -> KeyStatement:
        """Register the first key with a join token, whose secret only keys a MAC over the proof, or with a platform's
        token, which goes to the registry as it is. Without either it is for the registry to say whether it takes
        newcomers as they are (``serve --dev`` does).

        Raises EnrolmentRefused, EnrolmentPending where the registry lets newcomers wait for an operator, FetchError,
        TrustUnavailable or DocumentRefused; ConfigurationError where the platform's token cannot be had.
        """
        proof = self._proof(key)
        return self._register(key, canonical_json({"proof": proof, **_right(token, proof)}), {})

    def rotate(self, key: KeyPair, vouch: SignsRequests) -> KeyStatement:
        """Register the next key: it proves itself, and the current one, which signs with ``vouch``, vouches for it.

        Raises as `join` does.
        """
        body = canonical_json({"proof": self._proof(key)})
        token = vouch(method="POST", target=self._fetcher.target(self._path), body=body, headers={"content-type": JSON})
        return self._register(key, body, {"Authorization": f"Bearer {token}"})

    def statement(self, held: HeldKey) -> KeyStatement | None:
        """What the registry says of a key now; None where somebody says, unsigned, that it knows nothing of it.

        Raises FetchError, TrustUnavailable or DocumentRefused.
        """
        owner = service_id(self._trust.domain, self._service)
        try:
            statement = self._trust.document(KeyStatement, f"{self._path}/{held.thumbprint}.jwt", owner)
        except FetchError as error:
            if error.http_status == 404:
                return None
            raise
        return self._about(held.kid, statement)

    def retire(self, held: HeldKey, sign: SignsRequests) -> None:
        """Retire a key, in its own name. A key that the registry no longer knows as active is as good as retired.

        Raises FetchError where the registry could not be asked, or says anything else.
        """
        path = f"{self._path}/{held.thumbprint}?reason=retired"
        token = sign(method="DELETE", target=self._fetcher.target(path), body=b"", headers={})
        with no_larger_than(MAX_PROBLEM):
            answer = self._fetcher.call("DELETE", path, headers={"Authorization": f"Bearer {token}"})
        if answer.status not in (204, 404) and _code_of(answer) not in _ENDED:
            raise FetchError(f"the registry answered {answer.status}", answer.status)

    @property
    def _path(self) -> str:
        return f"/v1/services/{self._service}/keys"

    def _proof(self, key: KeyPair) -> str:
        domain = self._trust.domain
        issuer, audience = service_id(domain, self._service), registry_id(domain)
        return sign_proof(key, issuer=issuer, audience=audience, now=self._clock())

    def _register(self, key: KeyPair, body: bytes, headers: dict[str, str]) -> KeyStatement:
        with no_larger_than(KeyStatement.MAX_SIZE):
            answer = self._fetcher.call("POST", self._path, body=body, headers={"Content-Type": JSON, **headers})
        kid = make_kid(service_id(self._trust.domain, self._service), key.public.thumbprint)
        if answer.status in (429, 500, 503):
            raise FetchError(f"the registry answered {answer.status}", answer.status)
        if answer.status == 202:
            raise EnrolmentPending(f"{kid} waits for an operator of the registry to approve it")
        if answer.status not in (200, 201):
            raise EnrolmentRefused(_code_of(answer), f"the registry answered {answer.status}")
        statement = self._read(answer, kid)
        if statement.state != ACTIVE:
            raise EnrolmentRefused(f"key_{statement.state}", "the registry admitted the key, but not as active")
        return statement

    def _read(self, answer: Answer, kid: str) -> KeyStatement:
        return self._about(kid, self._trust.read_statement(answer.body.decode("ascii", "replace")))

    @staticmethod
    def _about(kid: str, statement: KeyStatement) -> KeyStatement:
        if statement.kid != kid:
            raise DocumentRefused("document_wrong_subject", "a statement about another key")
        return statement


def _right(token: JoinToken | PlatformToken | None, proof: str) -> dict[str, object]:
    """The member of a registration that says by what right."""
    match token:
        case JoinToken():
            return {"join": {"id": token.id, "mac": join_mac(token.mac_key, proof)}}
        case PlatformToken():
            return {"oidc": token.text()}
        case None:
            return {}


_ENDED = ("revoked_key", "unknown_key", "expired")
"""Codes with which a registry refuses what a key signs after its end."""

UNREACHABLE = (FetchError, TrustUnavailable)
"""Errors that say nothing about a key: the registry could not be asked."""

TRY_AGAIN = (*UNREACHABLE, EnrolmentPending)
"""Errors after which registering the same key again later makes sense."""

LONGEST_PAUSE = 10.0
"""Seconds between two attempts, at most."""


def pauses() -> Iterator[float]:
    """Seconds between attempts: doubling from a fifth, up to `LONGEST_PAUSE`, for ever."""
    pause = 0.2
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE)


def refusal_behind(error: PeersealError) -> DocumentRefused | None:
    """The document that was refused where an error says only that the registry's word cannot be had now."""
    cause = error.__cause__
    return cause if isinstance(error, TrustUnavailable) and isinstance(cause, DocumentRefused) else None


def _code_of(answer: Answer) -> str:
    """The code in a problem document (RFC 9457); a plain text where the answer is none."""
    try:
        code = strict_json_object(answer.body).get("code") if len(answer.body) <= MAX_PROBLEM else None
    except MalformedToken:
        code = None
    return code if isinstance(code, str) else "refused"


def platform_token(
    source: str | Callable[[], str] | None,
    joining: JoinToken | None,
    registry: str | Sequence[str],
    fetcher: Fetcher | None,
) -> PlatformToken | None:
    """What a newcomer shows in the place of a join token; a stranger who read it off the wire could show it too. Raises
    ConfigurationError."""
    if source is None:
        return None
    if joining is not None:
        raise ConfigurationError("a join token and a platform's token: which one counts?")
    urls = registry.split(",") if isinstance(registry, str) else [*registry, ""]  # none at all is no URL either
    confidential = is_confidential(urls[0].strip()) if fetcher is None else getattr(fetcher, "confidential", True)
    if not confidential:
        raise ConfigurationError("a platform's token is sent over https or loopback only")
    return PlatformToken.of(source)
