"""Documents that the registry signs, and the keys that they name."""
