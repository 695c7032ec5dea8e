"""The database: typed tables, queries, and transactions. SQLite and PostgreSQL, by the same statements."""
