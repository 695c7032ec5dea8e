"""What the tests start and call: real PostgreSQL, real processes, the real HTTPie."""
