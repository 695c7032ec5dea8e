"""The call that an application serves: its caller, and a refusal that comes late."""

from contextvars import ContextVar
from typing import Final

from peerseal.errors import MissingToken, PeersealError
from peerseal.refusals import Gate, lacking
from peerseal.verify.request import Peer


class CheckedCall:
    """One call that an adapter has let through: who made it, and whether a handler refused it since.

    Handlers find it in a context variable; threads of the request share it.
    """

    request_id = ""  # of a refused one
    reported = False

    def __init__(self, gate: Gate) -> None:
        self.peer: Peer | None = None
        self.refused: PeersealError | None = None
        self.began = False
        self.gate = gate

    def logged(self, error: PeersealError, *, reported: bool = False) -> str:
        """Log and count a refusal, or one that is only ``reported``. Returns the request id."""
        raise NotImplementedError

    def require(self, scope: str, transaction: bool) -> None:
        """See `require_scope`."""
        error = lacking(self.peer, scope, transaction)
        if error is None:
            return
        if not self.gate.report_only:
            self.refuse(error)
            raise error
        if self.peer is not None or not self.reported:  # once where there is none: the check may have done it
            self.report(error)

    def refuse(self, error: PeersealError) -> None:
        """Refuse the call; log and count it."""
        self.refused = error
        self.request_id = self.logged(error)

    def report(self, error: PeersealError) -> None:
        """Log and count what would have been refused."""
        self.reported = True
        self.logged(error, reported=True)


calls: Final[ContextVar[CheckedCall | None]] = ContextVar("peerseal_call", default=None)
"""The call that this code serves."""


def current_peer() -> Peer:
    """The verified caller of the request that this code serves. Raises RuntimeError where there is none."""
    call = calls.get()
    if call is None or call.peer is None:
        raise RuntimeError("no verified caller: the path is public, or the check reports only")
    return call.peer


def require_scope(scope: str, *, transaction: bool = False) -> None:
    """For a handler that learns late what the call needs: passes where the caller may use the scope.

    What it raises (MissingToken, InsufficientScope, BadTransactionToken) becomes the answer, even where the application
    catches it, until the first byte of the answer's body is sent. ``current_peer().scopes`` says what the caller may
    use.
    """
    call = calls.get()
    if call is None:
        raise MissingToken("not within a request")
    call.require(scope, transaction)
