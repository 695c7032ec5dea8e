"""The use cases, by the question that they answer. Every change of state is one entry of the ledger, in the same
transaction."""

import sys

from peerseal.runtime.old_names import OldNames

sys.meta_path.append(OldNames({f"{__name__}.together": "registry.storage.group_commit"}))
