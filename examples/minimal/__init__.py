"""A caller and a callee: the least that two services need to trust each other."""
