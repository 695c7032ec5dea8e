# The registry and the example services, and a second image with what is for the demo only: the identity provider, HTTPie
# for people, and what docker-compose.yml runs once.
#   docker build --target peerseal -t peerseal .
#   docker build --target demo -t peerseal-demo .
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
WORKDIR /src
RUN python3 -m venv --without-pip /opt/peerseal
COPY setup.cfg pyproject.toml README.md LICENSE ./
COPY peerseal peerseal
COPY registry registry
COPY migrations migrations
RUN python3 -m pip --python /opt/peerseal/bin/python install --no-cache-dir --no-compile ".[all]"

FROM build AS demo-build
RUN python3 -m pip --python /opt/peerseal/bin/python install --no-cache-dir --no-compile ".[all,demo]"

FROM ${BASE_IMAGE} AS peerseal
# The folders exist here with their owner, so that a fresh volume mounted on one belongs to that user too.
RUN groupadd --gid 10001 peerseal \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin peerseal \
 && install -d -m 0755 /tls/authority /tls/registry /tls/login /tls/kafka \
 && install -d -o peerseal -g peerseal -m 0700 /var/lib/peerseal /join \
    /join/client-service /join/resource-service /join/case-service /join/invoicing /join/legacy-shop
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
CMD ["gunicorn", "--config", "python:registry.gunicorn_conf", "--worker-class", "registry.worker.Worker", "--workers", "2", "registry.wsgi:app"]

FROM peerseal AS demo
COPY --from=demo-build /opt/peerseal /opt/peerseal
COPY demo /app/demo
