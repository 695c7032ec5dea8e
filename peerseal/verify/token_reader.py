"""Steps 1, 2 and 4 of verification, for the tokens that services sign: requests and events."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from peerseal.errors import MalformedToken
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url_decode, strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.names import split_service_id
from peerseal.protocol.tokens.claims import owner_in

_MAX_HEADERS = 4096
_MAX_HEADER = 700  # characters: a header with the longest possible names, without white space and escapes


@dataclass(frozen=True, slots=True)
class ClaimedSigner:
    """The unproven claims of a token's header: the key that signed, and its owner's service id and short name."""

    alg: str
    kid: str
    service_id: str
    service: str


class UnverifiedServiceToken(NamedTuple):
    """A token with the right syntax (steps 1 and 2). Its claims are not proven."""

    signer: ClaimedSigner
    claims: dict[str, Any]
    signing_input: bytes
    signature: bytes
    header_segment: bytes


class TokenReader:
    """Reads tokens of one ``typ`` whose claims have the shape that ``check_claims`` checks.

    ``usual_claims`` reads a payload that is spelled as our signers spell it. The result is the same as that of strict
    parsing and ``check_claims``. For any other payload it returns None; then the reader parses strictly.

    All tokens of a key have the same header, so headers of tokens with a good signature are cached: this saves a fifth
    of a verification.
    """

    def __init__(
        self,
        typ: str,
        check_claims: Callable[[dict[str, Any]], None],
        usual_claims: Callable[[bytes], dict[str, Any] | None],
    ) -> None:
        self._typ = typ
        self._check_claims = check_claims
        self._usual_claims = usual_claims
        self._signers: dict[bytes, ClaimedSigner] = {}

    def read(self, token: str) -> UnverifiedServiceToken:
        """Steps 1 and 2. Raises MissingToken, MalformedToken or WrongType."""
        header_segment, payload_segment, signature_segment, signing_input = jose.split_segments(token)
        payload, signature = b64url_decode(payload_segment), b64url_decode(signature_segment)
        usual = self._usual_claims(payload)
        claims = strict_json_object(payload) if usual is None else usual
        signer = self._signers.get(header_segment) or self._read_header(header_segment)
        if usual is None:
            try:
                self._check_claims(claims)
            except MalformedToken as error:
                error.at_step(2)
                raise
        return UnverifiedServiceToken(signer, claims, signing_input, signature, header_segment)

    def check_signature(self, unverified: UnverifiedServiceToken, key: PublicKey) -> None:
        """Step 4. Raises BadSignature."""
        signer, _, signing_input, signature, header_segment = unverified
        key.check_signature(signer.alg, signing_input, signature)
        # Only now: a caller without a registered key cannot fill the cache.
        if header_segment not in self._signers and len(header_segment) <= _MAX_HEADER:
            if len(self._signers) >= _MAX_HEADERS:
                self._signers.clear()
            self._signers[header_segment] = signer

    def __len__(self) -> int:
        """How many headers are cached."""
        return len(self._signers)

    def _read_header(self, segment: bytes) -> ClaimedSigner:
        header = jose.parse_header(segment)
        owner = owner_in(header, self._typ)
        return ClaimedSigner(header.alg, header.kid, owner, split_service_id(owner)[1])
