"""How gunicorn serves the application: its settings, a worker class, connections, and a stop without failed calls."""
