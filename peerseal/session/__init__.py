"""How a service calls another one: signed attempts, retries, circuit breakers."""
