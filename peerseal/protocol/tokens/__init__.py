"""Tokens, one kind a module: who signs it, for whom, and for how long it is good."""
