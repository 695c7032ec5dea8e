"""The demo's stack of real processes, on either database."""

from demo.stack import CLIENT, DOMAIN, INVOICING, RESOURCE, CommandFailed, Stack

__all__ = ["CLIENT", "DOMAIN", "INVOICING", "RESOURCE", "CommandFailed", "Stack"]
