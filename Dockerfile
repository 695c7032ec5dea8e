# Three images: the registry; and for docker-compose.yml the example services, and the demo's own parts (the identity
# provider, HTTPie for people, what runs once).
#   make image     # peerseal-registry:local; docs/how-to/operations.md says how to run it
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS registry-build
WORKDIR /src
RUN python3 -m venv --without-pip /opt/peerseal
COPY setup.cfg pyproject.toml MANIFEST.in VERSION README.md LICENSE ./
COPY peerseal peerseal
COPY registry registry
COPY migrations migrations
COPY distributions distributions
RUN python3 -m pip --python /opt/peerseal/bin/python install --no-cache-dir . ./distributions/registry

FROM registry-build AS examples-build
RUN python3 -m pip --python /opt/peerseal/bin/python install --no-cache-dir ".[all]"

FROM examples-build AS demo-build
RUN python3 -m pip --python /opt/peerseal/bin/python install --no-cache-dir ".[all,demo]"

# What all images share. Any user id in group 0 can write the folder, and a fresh volume that is mounted on it: platforms such as
# OpenShift choose the user id. The folder is root's, so that files of the user before count as another user's.
FROM ${BASE_IMAGE} AS base
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin peerseal \
 && install -d -m 0770 /var/lib/peerseal
ENV PATH=/opt/peerseal/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PORT=8080 \
    GUNICORN_CMD_ARGS="--worker-tmp-dir /dev/shm --no-control-socket"
USER 10001:0
EXPOSE 8080

FROM base AS registry
USER 0:0
RUN install -d -m 0770 /root-key
USER 10001:0
COPY --from=registry-build /opt/peerseal /opt/peerseal
ENV REGISTRY_HOME=/var/lib/peerseal
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=6 \
    CMD python3 -c "import sys, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(sys.argv[1], timeout=4)" \
    "${HEALTH_URL:-http://127.0.0.1:$PORT/healthz}"
CMD ["gunicorn", "--config", "python:registry.gunicorn_conf", "--workers", "2", "registry.wsgi:app"]

FROM base AS examples
USER 0:0
RUN install -d -m 0770 /root-key /join /join/client-service /join/resource-service /join/case-service /join/invoicing \
    /join/legacy-shop /join/httpservice /join/billing /join/reporting
USER 10001:0
ENV GUNICORN_CMD_ARGS="--worker-class gthread --worker-tmp-dir /dev/shm --no-control-socket"
WORKDIR /app
COPY --from=examples-build /opt/peerseal /opt/peerseal
COPY client_service client_service
COPY resource_service resource_service

FROM examples AS demo
COPY --from=demo-build /opt/peerseal /opt/peerseal
COPY demo demo

# The default target.
FROM registry
