"""The user's transaction of the current call."""

import peerseal


def needed_transaction() -> peerseal.Transaction:
    """The transaction in a route with ``transaction=True``, which refuses calls without one."""
    transaction = peerseal.current_transaction()
    if transaction is None:
        raise LookupError("the route is not marked as one that needs a transaction")
    return transaction
