"""A registry of a million keys on PostgreSQL, compared with a small one: ``python -m benchmarks.scale``."""
