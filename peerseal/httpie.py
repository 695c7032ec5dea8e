"""HTTPie: ``http --auth-type=peerseal -a AUDIENCE URL`` sends a request that the service of this host signs.

HTTPie loads this module at each start, so the SDK is loaded when a request is signed, and not before.
"""

from typing import TYPE_CHECKING

from peerseal.runtime.extras import missing

try:
    from httpie.plugins import AuthPlugin
except ModuleNotFoundError as error:
    raise missing(error, "httpie") from error

if TYPE_CHECKING:
    from peerseal.session.signed_request import RequestSigner


class PeersealAuthPlugin(AuthPlugin):  # type: ignore[misc]  # HTTPie has no annotations
    """``--auth-type=peerseal``. The value of ``-a`` is the name or id of the service that is called; the caller is the
    service in the environment, as for `peerseal.Identity.from_env`."""

    name = "Peerseal"
    auth_type = "peerseal"
    description = "Signs the request as the service in PEERSEAL_SERVICE; -a names the service that is called."
    auth_require = True
    auth_parse = False
    netrc_parse = False
    prompt_password = False

    def get_auth(self, username: str | None = None, password: str | None = None) -> "RequestSigner":
        """The signer of the request. HTTPie gives neither argument, since ``-a`` is not parsed."""
        from peerseal.commands.own_identity import start_own_identity
        from peerseal.session.signed_request import RequestSigner

        return RequestSigner(self.raw_auth, start_own_identity)
