"""The pages, each with its acts."""

from registry.console.pages import approvals, ending, join_tokens, overview, policy, services, sign_in
from registry.console.rendering import Place

PAGES = (
    sign_in.blueprint,
    overview.blueprint,
    services.blueprint,
    approvals.blueprint,
    join_tokens.blueprint,
    ending.blueprint,
    policy.blueprint,
)
PLACES = (
    Place("console.overview.show", "Overview"),
    Place("console.services.listed", "Services"),
    Place("console.approvals.show", "Approvals"),
    Place("console.join_tokens.show", "Join tokens"),
)
"""The navigation, in its order."""
