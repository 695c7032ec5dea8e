"""An example caller, at the edge: people call it without a token, and it calls resource-service in its own name."""
