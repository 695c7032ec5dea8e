"""The registry's own keys: made at the start, rolled over by the root."""
