# The relay from its wheel and its locks, as a user without rights.
#
#   docker build -t moderelay .
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --stop-timeout 40 \
#     -p 8080:8080 -p 127.0.0.1:8081:8081 -v ./relay.toml:/etc/relay/relay.toml:ro -v relay-data:/var/lib/relay moderelay
#
# It writes to /var/lib/relay alone (a volume), and with several workers to /dev/shm: their counts. What the embedded store
# keeps lives there: [store] url = "embedded:/var/lib/relay". With a Redis it is for the journal: data_dir = "/var/lib/relay".
#
# In a container both listeners of relay.toml need host = "0.0.0.0". The second has no token on /metrics: do not publish it
# further than your monitoring. Docker ends a container that has not stopped by itself after 10 s: give it more than
# `drain_s`, as above. docs/deploying.md has the rest.
#
# Another package index: --build-arg PIP_INDEX_URL=… (and PIP_TRUSTED_HOST, PIP_CERT as pip knows them). The same base for
# ever: --build-arg BASE=python:3.11-slim-bookworm@sha256:…
# The Python that the whole suite is run on.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
# The locks first: a change of our own code does not fetch the dependencies again. What builds and installs stays behind, pip
# too: it is that of /opt/build, at work on another environment.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/build \
 && python -m venv --without-pip /opt/relay \
 && /opt/build/bin/pip install --only-binary :all: --require-hashes -r requirements-build.lock \
 && /opt/build/bin/pip --python /opt/relay/bin/python install --no-compile --only-binary :all: --require-hashes \
      -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
COPY plugins plugins
# Bytecode is made once, here, and does not look at its source again: not at the times that a copy or a rebuild changes.
RUN /opt/build/bin/hatchling build --target wheel --directory /wheels \
 && /opt/build/bin/pip --python /opt/relay/bin/python install --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/relay/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/relay/lib

FROM ${BASE}
ARG BASE
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="moderelay" \
      org.opencontainers.image.description="A streaming relay for OpenAI-compatible chat completions that moderates what it streams." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
# A number, so that Kubernetes can verify runAsNonRoot. Nothing can be installed in what runs: the base's own pip goes too.
RUN groupadd --gid 10001 relay \
 && useradd --uid 10001 --gid relay --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relay \
 && install --directory --owner 10001 --group 10001 --mode 700 /var/lib/relay \
 && rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/ensurepip /usr/local/lib/python3.*/site-packages/pip*
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/relay
USER 10001:10001
WORKDIR /
EXPOSE 8080 8081
# SIGTERM drains: open replies go on for up to `drain_s`.
STOPSIGNAL SIGTERM
# Whether it lives; whether it is ready is a load balancer's question, at /readyz. With another [admin] port, or none to be
# reached on loopback, give your own: --health-cmd.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["python", "-c", \
  "from http.client import HTTPConnection as H; c = H('127.0.0.1', 8081, timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["relay"]
CMD ["serve", "--config", "/etc/relay/relay.toml"]
