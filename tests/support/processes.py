"""Real processes, as the demo starts them; ``kill`` is ``kill -9`` of a server with all its workers."""

from demo.processes import LOOPBACK, Process, ProcessFailed, Server, free_port, gunicorn, status_of

__all__ = ["LOOPBACK", "Process", "ProcessFailed", "Server", "free_port", "gunicorn", "status_of"]
