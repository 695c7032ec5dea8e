"""The programs that containers of docker-compose.yml run once, before the services start."""
