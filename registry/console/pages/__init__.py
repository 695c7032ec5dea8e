"""The pages, each with its acts."""

from registry.console.pages import (
    activity,
    approvals,
    ending,
    graph,
    join_tokens,
    overview,
    policy,
    services,
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
    activity.blueprint,
)
PLACES = (
    Place("console.overview.show", "Overview"),
    Place("console.services.listed", "Services"),
    Place("console.approvals.show", "Approvals"),
    Place("console.join_tokens.show", "Join tokens"),
    Place("console.graph.show", "Trust graph"),
    Place("console.activity.show", "Activity"),
)
"""The navigation, in its order."""
