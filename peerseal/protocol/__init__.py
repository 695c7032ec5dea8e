"""Floor 1: names, keys, tokens and signed documents. Bytes and keys in, values or errors out: no I/O, no clock."""
