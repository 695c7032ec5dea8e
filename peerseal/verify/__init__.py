"""Who calls this service, or published an event, and for which user."""
