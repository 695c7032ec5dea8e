"""Replay guards: each token is accepted once."""
