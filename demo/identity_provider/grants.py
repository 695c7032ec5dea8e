"""The hooks of Authlib's server: codes with PKCE, ID tokens, introspection, revocation."""

from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationCodeGrant
from authlib.oauth2.rfc6749.errors import InvalidRequestError
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from authlib.oidc.core import OpenIDCode

from demo.identity_provider.clients import Client
from demo.identity_provider.keys import ALG
from demo.identity_provider.people import Person
from demo.identity_provider.tokens import LIFETIME, AuthorizationCode, OpaqueToken, Tokens


class S256Only(CodeChallenge):  # type: ignore[misc]  # Authlib has no annotations
    """PKCE with a hashed challenge, which every program has to send (RFC 9700 section 2.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012 - Authlib's own form

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Like CodeChallenge's check, but it requires a challenge and has no default "plain"."""
        data = grant.request.payload.data
        if "code_challenge" not in data or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("code_challenge with code_challenge_method=S256 is needed")
        super().validate_code_challenge(grant, redirect_uri)


def code_grant(tokens: Tokens) -> type[AuthorizationCodeGrant]:
    """The authorization code grant over ``tokens``. Authlib makes an object of it for each request."""

    class Grant(AuthorizationCodeGrant):  # type: ignore[misc]  # Authlib has no annotations
        TOKEN_ENDPOINT_AUTH_METHODS = ["none"]  # noqa: RUF012 - Authlib's own form

        def save_authorization_code(self, code: str, request: Any) -> None:
            data = request.payload.data
            granted = AuthorizationCode(
                client_id=request.client.client_id,
                redirect_uri=request.payload.redirect_uri,
                scope=request.scope,
                nonce=data.get("nonce"),
                code_challenge=data["code_challenge"],
                code_challenge_method=data["code_challenge_method"],
                person=request.user,
                authenticated_at=int(tokens.clock()),
            )
            tokens.add_code(code, granted)

        def query_authorization_code(self, code: str, client: Client) -> AuthorizationCode | None:
            granted = tokens.take_code(code)
            return granted if granted and granted.client_id == client.client_id else None

        def delete_authorization_code(self, authorization_code: AuthorizationCode) -> None:
            """Nothing to do: the look-up already removed the code."""

        def authenticate_user(self, authorization_code: AuthorizationCode) -> Person:
            return authorization_code.person

    return Grant


def id_tokens(tokens: Tokens) -> OpenIDCode:
    """Adds an ID token to the answer where the scope contains ``openid`` (OpenID Connect Core 1.0)."""

    class IdTokens(OpenIDCode):  # type: ignore[misc]  # Authlib has no annotations
        def exists_nonce(self, nonce: str, request: Any) -> bool:
            return False  # a code is valid once, and so is its nonce

        def resolve_client_private_key(self, client: Client) -> Any:
            return tokens.key.key

        def get_client_algorithm(self, client: Client) -> str:
            return ALG

        def get_encode_header(self, client: Client) -> dict[str, str]:
            return {"alg": ALG, "kid": tokens.key.kid}

        def get_client_claims(self, client: Client) -> dict[str, Any]:
            now = int(tokens.clock())
            return {"iss": tokens.issuer, "aud": client.client_id, "iat": now, "exp": now + LIFETIME}

        def generate_user_info(self, user: Person, scope: str) -> dict[str, str]:
            return {"sub": user.name} | ({"name": user.full_name} if "profile" in scope.split() else {})

    return IdTokens()


def introspection(tokens: Tokens) -> type[IntrospectionEndpoint]:
    """Introspection of opaque tokens (RFC 7662)."""

    class Introspection(IntrospectionEndpoint):  # type: ignore[misc]  # Authlib has no annotations
        CLIENT_AUTH_METHODS = ["client_secret_basic"]  # noqa: RUF012 - Authlib's own form

        def query_token(self, token_string: str, token_type_hint: str | None) -> OpaqueToken | None:
            return tokens.find(token_string)

        def check_permission(self, token: OpaqueToken, client: Client, request: Any) -> bool:
            return True  # the programs that may call this endpoint see every token

        def introspect_token(self, token: OpaqueToken) -> dict[str, Any]:
            return tokens.described(token)

    return Introspection
