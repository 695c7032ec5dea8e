"""Who calls the registry, what each may do, and the tokens that it issues."""
