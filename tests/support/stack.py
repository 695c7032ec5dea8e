"""The demo's stack of real processes, on either database."""

from demo.stack import CLIENT, DOMAIN, RESOURCE, CommandFailed, Stack

__all__ = ["CLIENT", "DOMAIN", "RESOURCE", "CommandFailed", "Stack"]
