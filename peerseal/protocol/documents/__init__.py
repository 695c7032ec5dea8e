"""The documents that a registry signs. `frame` signs and reads them; each other module has one kind."""
