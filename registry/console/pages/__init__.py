"""The pages, each with its acts."""

from registry.console.pages import (
    activity,
    approvals,
    ending,
    federation,
    graph,
    join_tokens,
    ledger,
    overview,
    policy,
    services,
    settings,
    sign_in,
)
from registry.console.rendering import Place

PAGES = (
    sign_in.blueprint,
    overview.blueprint,
    services.blueprint,
    approvals.blueprint,
    join_tokens.blueprint,
    ending.blueprint,
    policy.blueprint,
    graph.blueprint,
    federation.blueprint,
    activity.blueprint,
    ledger.blueprint,
    settings.blueprint,
)
PLACES = (
    Place("console.overview.show", "Overview"),
    Place("console.services.listed", "Services", parts=("ending", "policy")),
    Place("console.approvals.show", "Approvals"),
    Place("console.join_tokens.show", "Join tokens"),
    Place("console.graph.show", "Trust graph"),
    Place("console.activity.show", "Activity"),
    Place("console.ledger.show", "Ledger"),
    Place("console.settings.show", "Settings", parts=("federation",)),
)
"""The navigation, in its order."""
