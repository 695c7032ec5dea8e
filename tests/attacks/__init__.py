"""Attacks on tokens: every one is refused with its stable code, and leaves no trace."""
