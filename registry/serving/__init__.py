"""What stands around the application: gunicorn's settings, worker, connections and stop."""
