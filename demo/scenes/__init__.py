"""The scenes of the demo. Each scene checks what it shows."""

from demo.scenes import calls, events, keys, trust, users
from demo.scenes.stage import Stage

SCENES = (
    calls.credentials,
    calls.key_set,
    calls.signed_call,
    calls.replay,
    calls.bindings,
    calls.unknown_key,
    calls.not_allowed,
    trust.altered_answer,
    users.login,
    events.order,
    users.three_services,
    events.refused,
    events.delivered_again,
    events.event_token_in_a_call,
    trust.two_histories,
    keys.rotation,  # the ledger grows meanwhile, and the checkpoints are compared
    trust.split_view,
    keys.revocation,
)


def play(stage: Stage) -> None:
    """All scenes, in order. Raises Unexpected."""
    for scene in SCENES:
        scene(stage)
