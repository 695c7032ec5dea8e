# One image for the registry and the example services, and a small one with HTTPie for whoever wants to call them.
#   docker build --target peerseal -t peerseal .
#   docker build --target httpservice -t peerseal-httpservice .
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv /opt/peerseal
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY peerseal peerseal
COPY registry registry
COPY migrations migrations
RUN /opt/peerseal/bin/pip install --no-cache-dir --no-compile ".[all]" && /opt/peerseal/bin/pip uninstall --yes --quiet pip

FROM ${BASE_IMAGE} AS peerseal
# The folders exist here with their owner, so that a fresh volume mounted on one belongs to that user too.
RUN groupadd --gid 10001 peerseal \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin peerseal \
 && install -d -o peerseal -g peerseal -m 0700 /var/lib/peerseal \
    /join/client-service /join/resource-service /join/invoicing
COPY --from=build /opt/peerseal /opt/peerseal
COPY client_service /app/client_service
COPY resource_service /app/resource_service
ENV PATH=/opt/peerseal/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    GUNICORN_CMD_ARGS="--bind 0.0.0.0:80 --worker-class gthread --worker-tmp-dir /dev/shm --no-control-socket" \
    HEALTH_URL=http://127.0.0.1/healthz
WORKDIR /app
USER peerseal
EXPOSE 80
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 \
    CMD ["python3", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open(os.environ['HEALTH_URL'], timeout=4)"]
CMD ["gunicorn", "--config", "python:registry.gunicorn_conf", "--workers", "2", "registry.wsgi:app"]

FROM ${BASE_IMAGE} AS httpservice
RUN python3 -m venv /opt/httpie && /opt/httpie/bin/pip install --no-cache-dir httpie \
 && useradd --uid 10001 --create-home httpie
ENV PATH=/opt/httpie/bin:$PATH
USER httpie
CMD ["sleep", "infinity"]
