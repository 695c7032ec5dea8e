"""Callers and operators of the registry, their rights, and the tokens that it issues to them."""
