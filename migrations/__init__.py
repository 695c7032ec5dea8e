"""Alembic's migrations of the registry's database, for SQLite and PostgreSQL, one transaction each."""
