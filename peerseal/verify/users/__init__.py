"""Users' tokens at the edge: JWTs, and opaque tokens that their issuer is asked about."""
