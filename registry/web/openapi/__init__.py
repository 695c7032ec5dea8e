"""What the registry says of its own interface: OpenAPI 3.1 for programs, and a page of it for people."""
