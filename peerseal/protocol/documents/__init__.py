"""The documents that a registry signs. `frame` has what all share; each other module has one kind."""
