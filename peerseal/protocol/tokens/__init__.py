"""Tokens, one kind a module: who signs it, for whom, and how long it is valid."""
