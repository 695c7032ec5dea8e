"""What Prometheus makes of our metrics, alerts and dashboard: `make observe`."""
