"""The demo's stack of real processes, on either database."""

from demo.stack import CASES, CLIENT, DOMAIN, INVOICING, RESOURCE, CommandFailed, Stack

__all__ = ["CASES", "CLIENT", "DOMAIN", "INVOICING", "RESOURCE", "CommandFailed", "Stack"]
