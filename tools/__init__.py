"""Checks that `make lint` runs and that no other linter has."""
