"""How a service talks to the registry: every call has a deadline and a bound on bytes."""
