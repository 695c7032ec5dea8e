"""The peers of examples/node, go and java, against the vectors, a real registry and our own peers."""
