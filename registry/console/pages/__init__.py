"""The pages, each with its acts."""

from registry.console.pages import overview, sign_in
from registry.console.rendering import Place

PAGES = (sign_in.blueprint, overview.blueprint)
PLACES = (Place("console.overview.show", "Overview"),)
"""The navigation, in its order."""
