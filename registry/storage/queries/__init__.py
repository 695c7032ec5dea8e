"""Queries and changes, one table or two a module."""
