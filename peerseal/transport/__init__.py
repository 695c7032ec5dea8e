"""Calls to a registry over HTTP: bounded in time and size, from its mirrors in turn.

Read in this order: `deadline`, `fetch`, `mirrors`; `deadline_adapter` and `timed_connection` for `requests`.
"""
