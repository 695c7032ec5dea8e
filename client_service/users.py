"""Who the user of a request is, and what this service does in that user's name."""

from flask import request

import peerseal
from peerseal.errors import MalformedToken, MissingToken


class Users:
    """Verifies users' tokens by the issuers in the domain's settings."""

    def __init__(self, identity: peerseal.Identity) -> None:
        self._identity = identity
        self._verifier = peerseal.UserVerifier(
            identity.trust,
            introspection=peerseal.IntrospectionClient.from_env(identity),
            clock=identity.clock,
        )

    def current(self) -> peerseal.User | None:
        """The user whose token came with the request; None if none came. Raises TokenError for an invalid token, which
        never counts as no token."""
        header = request.headers.get("Authorization")
        if header is None:
            return None
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise MalformedToken("another scheme than Bearer")
        return self._verifier.verify(token.strip(" "))

    def needed(self) -> peerseal.User:
        """The user of the request. Raises MissingToken if none came, and TokenError for an invalid token."""
        user = self.current()
        if user is None:
            raise MissingToken("no user's token")
        return user

    def transaction(self, user: peerseal.User | None, *scope: str) -> peerseal.Transaction | None:
        """The transaction for a user's calls, to be used with `peerseal.carrying`; None without a user. Raises
        InsufficientScope."""
        return None if user is None else self._identity.mint_transaction(user, scope=scope)
