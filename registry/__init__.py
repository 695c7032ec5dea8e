"""The registry: the server that admits services' keys, and publishes them signed (docs/protocol.md)."""
