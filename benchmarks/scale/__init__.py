"""A registry of a million keys on PostgreSQL, compared with one of a thousand: ``python -m benchmarks.scale``."""
