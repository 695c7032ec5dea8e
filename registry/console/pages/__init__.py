"""The pages, each with its acts."""

from registry.console.pages import overview, services, sign_in
from registry.console.rendering import Place

PAGES = (sign_in.blueprint, overview.blueprint, services.blueprint)
PLACES = (
    Place("console.overview.show", "Overview"),
    Place("console.services.listed", "Services"),
)
"""The navigation, in its order."""
