"""People: who they are travels along with each call."""

from demo.scenes.stage import Stage
from demo.show import bearer
from demo.stack import CLIENT


def login(stage: Stage) -> None:
    """A user's token, and a profile that is fetched in the user's name."""
    show, url = stage.show, stage.client_url
    show.scene(
        "A user logs in, and is known two services away",
        "The token of ada's login stays at client-service. It vouches for her in a transaction token, which its own "
        "request token binds.",
    )
    show.call("POST", f"{url}/authenticate", "user=ada", "password=guess", status=401, code="wrong_login")
    right = ("user=ada", f"password={stage.password}")
    token = show.call("POST", f"{url}/authenticate", *right, status=200).json["access_token"]
    profile = show.call(f"{url}/profiles/1", bearer(token), status=200).json
    show.expect((profile["caller"], profile["user"]) == (CLIENT, "ada"), f"resource-service knows: {CLIENT} for ada")
    show.call(f"{url}/profiles/1", bearer("guess"), status=401, code="malformed_token")
