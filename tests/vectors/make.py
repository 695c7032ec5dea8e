"""Writes docs/vectors, the same bytes in every run::

python -m tests.vectors.make
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.vectors import basics, documents, evidence, foreign, history, ledger, requests, responses, tokens
from tests.vectors.world import Vectors

FOLDER: Final = Path(__file__).parents[2] / "docs" / "vectors"

FILES: Final[Mapping[str, Callable[[], Vectors]]] = {
    "base64url": basics.base64url,
    "json": basics.strict_json,
    "canonical-json": basics.canonical,
    "content-digest": basics.content_digests,
    "target-digest": basics.target_digests,
    "kid": basics.kids,
    "key": basics.keys,
    "authorization": basics.authorizations,
    "join": basics.join_macs,
    "refusal": basics.refusals,
    "request": requests.requests,
    "response": responses.responses,
    "transaction": tokens.transactions,
    "event": tokens.events,
    "exchanged-event": tokens.exchanged_events,
    "proof": tokens.proofs,
    "assertion": tokens.assertions,
    "access-token": foreign.access_tokens,
    "user-token": foreign.user_tokens,
    "introspection": foreign.introspections,
    "registry-keys": documents.registry_keys,
    "key-set": documents.key_sets,
    "key-set-part": documents.key_set_parts,
    "key-statement": documents.key_statements,
    "changes": documents.changes,
    "current": documents.current_services,
    "policy": documents.policies,
    "domain": documents.domains,
    "federation": documents.federations,
    "history": history.histories,
    "continuation": history.continuations,
    "inclusion": ledger.inclusions,
    "consistency": ledger.consistencies,
    "checkpoint": ledger.checkpoints,
    "cosigned-checkpoint": ledger.cosigned,
    "evidence": evidence.evidences,
}
"""Each file's name without its suffix, which is its kind as well."""


def text_of(name: str) -> str:
    """The text of one file."""
    return json.dumps(FILES[name]().to_json(), indent=1) + "\n"


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        (FOLDER / f"{name}.json").write_text(text_of(name))


if __name__ == "__main__":
    main()
