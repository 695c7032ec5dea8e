"""Who this service is: its keys, how they are enrolled and replaced, and what they sign."""
