"""The headers of tokens: step 2 of verification, for every kind of token that peers sign."""

from dataclasses import dataclass

from peerseal.errors import InvalidName, MalformedToken, WrongType
from peerseal.protocol import jose
from peerseal.protocol.names import split_kid, split_service_id

_REMEMBERED = 4096
_LONGEST_REMEMBERED = 700  # characters: the longest names that there can be, without blanks and escapes


@dataclass(frozen=True, slots=True)
class Signer:
    """What a token's header claims: the key that signed, and the service (id and short name) that owns it."""

    alg: str
    kid: str
    caller: str
    service: str


class GoodHeaders(dict[bytes, Signer]):
    """The headers of one kind of token that came with a good signature before, by their segment.

    A key's tokens share one header; reading it once saves a fifth of the work.
    """

    def __init__(self, typ: str) -> None:
        super().__init__()
        self._typ = typ

    def read(self, segment: bytes) -> Signer:
        """Step 2, for a header that was not good before. Raises MalformedToken or WrongType."""
        header = jose.parse_header(segment)
        if header.typ != self._typ:
            raise WrongType(f"not a {self._typ}")
        if header.alg not in jose.ALGORITHMS:
            raise MalformedToken("an algorithm that nobody may use")
        try:
            caller = split_kid(header.kid)[0]
        except InvalidName as error:
            raise MalformedToken("the kid is none") from error
        return Signer(header.alg, header.kid, caller, split_service_id(caller)[1])

    def remember(self, segment: bytes, signer: Signer) -> None:
        """After a good signature only, so that strangers cannot fill the memory, and none that a caller blew up with
        blanks."""
        if len(segment) > _LONGEST_REMEMBERED:
            return
        if len(self) >= _REMEMBERED:
            self.clear()
        self[segment] = signer
