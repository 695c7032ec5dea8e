"""Users: each call carries the user's identity."""

from demo.scenes.stage import Stage
from demo.show import bearer
from demo.stack import CASES, CLIENT, RESOURCE


def login(stage: Stage) -> None:
    """A user's token, and a profile that is fetched in the user's name."""
    show, url = stage.show, stage.client_url
    show.scene(
        "A user logs in, and two further services know her",
        "The identity provider checks her password and issues her token, which stays at client-service. "
        "client-service mints a transaction token for her, which its request token binds.",
    )
    show.call("POST", f"{url}/authenticate", "user=ada", "password=guess", status=401, code="wrong_login")
    right = ("user=ada", f"password={stage.password}")
    token = show.call("POST", f"{url}/authenticate", *right, status=200).json["access_token"]
    profile = show.call(f"{url}/profiles/1", bearer(token), status=200).json
    show.expect((profile["caller"], profile["user"]) == (CLIENT, "ada"), f"resource-service knows: {CLIENT} for ada")
    show.call(f"{url}/profiles/1", bearer("guess"), status=401, code="expired")  # the issuer knows no such token


def three_services(stage: Stage) -> None:
    """A chain of three services, in the user's name."""
    show, ada = stage.show, bearer(stage.user_token("ada"))
    show.scene(
        "Three services in a row, and the third knows the user",
        "case-service opened a case when resource-service asked for the order above. It stores its own data, accepts "
        "calls of resource-service only, and learns the user from the transaction token, which arrives unchanged.",
    )
    told = show.call(f"{stage.client_url}/cases", ada, status=200).json
    show.expect({case["userID"] for case in told["cases"]} == {"ada"}, "the cases are ada's")
    chain = [(hop["caller"], hop["service"], hop["user"]) for hop in told["chain"]]
    show.expect(chain == [(CLIENT, RESOURCE, "ada"), (RESOURCE, CASES, "ada")], "each hop proved its caller and ada")
    token = stage.token("GET", "/cases", audience=CASES)
    title = "client-service, directly:"
    show.call(f"{stage.cases_url}/cases", bearer(token), status=403, code="caller_not_allowed", title=title)
