"""The identity provider of the demo: it represents a login service that is bought or run elsewhere.

It shares nothing with Peerseal: another key, another library (Authlib), another process. Its tokens count only
because the domain document lists it. People log in on its page (authorization code flow with PKCE, RFC 7636) and get an
opaque access token, which client-service looks up here (RFC 7662), or a JWT (RFC 9068), which it verifies by itself.
"""
