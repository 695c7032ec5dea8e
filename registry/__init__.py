"""The registry: the server that admits services' keys, and publishes them signed (SPEC section 5)."""
