"""The user's transaction within which a call is made."""

import peerseal


def needed_transaction() -> peerseal.Transaction:
    """The transaction of a route that is marked ``transaction=True``, which has made sure of it."""
    transaction = peerseal.current_transaction()
    if transaction is None:
        raise LookupError("the route is not marked as one that needs a transaction")
    return transaction
