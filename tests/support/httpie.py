"""The real ``http`` command, as the demo runs it."""

from demo.httpie import Answer, HttpieFailed, http

__all__ = ["Answer", "HttpieFailed", "http"]
