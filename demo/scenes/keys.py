"""Keys: a replacement during calls, and a revocation."""

import time

from demo.httpie import http
from demo.scenes.events import LETTERS, signed, topic_of
from demo.scenes.stage import Stage, wait_until
from demo.show import bearer
from demo.traffic import Traffic


def rotation(stage: Stage) -> None:
    """A new key during calls."""
    show, shown_at = stage.show, f"{stage.client_url}/my-public-credentials"
    show.scene(
        "A rotation during calls",
        "The new key is published first and signs after its lead, in which other services have fetched it.",
    )
    refresh = ("POST", f"{stage.client_url}/refresh-my-credentials")
    show.call(*refresh, status=403, code="operator_secret_required")
    old = http(shown_at).json["keyId"]
    with Traffic(f"{stage.client_url}/profiles/1") as traffic:
        new = show.call(*refresh, f"Operator-Secret:{stage.operator_secret}", status=200).json["keyId"]
        show.expect(new != old, "there is a new key", show=False)
        seconds = wait_until(lambda: http(shown_at).json["keyId"] == new)
        show.say(f"client-service signs with the new key after {seconds:.0f} s; one more second of calls …")
        time.sleep(1)
    total = sum(traffic.answers.values())
    show.expect(traffic.answers[200] == total > 0, f"{total} calls meanwhile, none refused")


def revocation(stage: Stage) -> None:
    """A revoked key is refused."""
    show, stack = stage.show, stage.stack
    kid = stage.client.credentials.key_id
    before, (payload, headers) = stage.token("GET", "/profiles/1"), signed(stage.client, "t-5", "e-5")
    show.scene("A revocation", "The operator revokes client-service's key, as if it had been stolen.")
    show.call(f"{stage.client_url}/profiles/1", status=200)
    stack.operate("revoke", kid)
    show.say(f"$ peerseal-registry revoke {kid}")
    seconds = wait_until(lambda: http(f"{stage.client_url}/profiles/1").status != 200)
    show.say(f"refused {seconds:.1f} s later, with the time of a call:")
    refusal = show.call(f"{stage.client_url}/profiles/1", status=502, code="resource_refused").json
    show.expect(refusal["resource_code"] == "revoked_key", "resource-service said: revoked_key")
    title = "A token that was signed before the revocation, never used, not expired:"
    show.call(f"{stage.resource_url}/profiles/1", bearer(before), status=401, code="revoked_key", title=title)
    with topic_of(stage) as topic:
        topic.send(payload, headers)
        letter = topic.dead_letters(LETTERS + 1)[-1]
    show.expect(letter.code == "revoked_key", f"an event that was signed before, put aside: {letter.code}")
