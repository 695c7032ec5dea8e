"""``peerseal-registry``, also as ``python -m registry``: the commands for registry operators.

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 the database or the registry cannot be reached, 130 after Ctrl-C, 141
if the reader of the output is gone. Where a library is missing, the program names the extra that installs it and exits
with 1.
"""

import sys
from typing import Any

from peerseal.errors import FetchError, PeersealError
from peerseal.runtime.extras import missing
from peerseal.runtime.terminal import INTERRUPTED, ended_quietly, say

try:
    import click

    from registry.commands.completion import completion
    from registry.commands.federation import federation
    from registry.commands.keys import approve, join_token, keys, operator_token, reject, revoke, services
    from registry.commands.node import audit, init, migrate, remember, roles, serve, status, tidy
    from registry.commands.policies import domain, policy
    from registry.commands.recovery import restore, verify
    from registry.commands.root import history, root
    from registry.domain.errors import LedgerContradicted, Unavailable
except ModuleNotFoundError as error:  # before `main` exists: its decorators are click's
    sys.exit(f"Error: {missing(error, 'registry')}")
except KeyboardInterrupt:
    sys.exit(INTERRUPTED)

UNREACHABLE = 3
REFUSED = 1


class Commands(click.Group):
    """Reports our errors, and the operating system's, in one line and an exit code."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """See click.Group; it prints the help."""
        with ended_quietly():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        try:
            with ended_quietly():
                return super().invoke(ctx)
        except PeersealError as error:
            text = str(error) or error.code
            say(f"Error: {text if error.code in text else f'{error.code}: {text}'}", error=True)
            ctx.exit(_exit_code(error))


def _exit_code(error: PeersealError) -> int:
    """A ledger that contradicts the one that was seen is refused: waiting does not help."""
    lasting = isinstance(error, LedgerContradicted)
    return UNREACHABLE if isinstance(error, (Unavailable, FetchError)) and not lasting else REFUSED


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="peerseal", prog_name="peerseal-registry")
def main() -> None:
    """Runs and administers a Peerseal registry.

    Settings come from the environment: REGISTRY_HOME (./registry-data), REGISTRY_DATABASE_URL (an SQLite file in the
    home), REGISTRY_TRUST_DOMAIN, REGISTRY_ROOT_KEY_FILE, REGISTRY_SIGNING_KEY_FILE, REGISTRY_LEDGER_KEY_FILE,
    REGISTRY_SEALING_KEY_FILE, REGISTRY_KEY_PASSPHRASE, REGISTRY_PUBLIC_URLS, REGISTRY_CHECKPOINT_URLS,
    REGISTRY_WITNESSES, REGISTRY_APPLICANTS (off), REGISTRY_CONSOLE (off), REGISTRY_OIDC_FILE, REGISTRY_PROXIES (0).
    Operators sign in to the console at an OIDC issuer with REGISTRY_CONSOLE_OIDC_ISSUER,
    REGISTRY_CONSOLE_OIDC_CLIENT_ID, REGISTRY_CONSOLE_OIDC_CLIENT_SECRET, REGISTRY_CONSOLE_OIDC_GROUPS,
    REGISTRY_CONSOLE_OIDC_GROUPS_CLAIM (groups), REGISTRY_CONSOLE_OIDC_CA_FILE, REGISTRY_CONSOLE_URL. Its server has
    REGISTRY_RATE_LIMIT_STORAGE (memory://), REGISTRY_DRAIN_SECONDS (5), REGISTRY_PRELOAD (on),
    REGISTRY_ALLOW_ASYNC_REPLICATION (off), REGISTRY_LISTEN_URL, REGISTRY_METRICS_ONLY_AT. Its log has
    REGISTRY_LOG_FORMAT (text). Each limit has a setting, too: docs/reference/limits.md.
    """


for command in (
    *(init, serve, migrate, roles, tidy, audit, status, remember),
    *(services, keys, revoke, approve, reject, join_token, operator_token, policy, domain),
    federation,
    *(verify, restore, history, root, completion),
):
    main.add_command(command)


if __name__ == "__main__":
    main()
