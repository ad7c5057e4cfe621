# The relay from its wheel and its locks, as a user without rights.
#
#   docker build -t moderelay .
#   docker run -p 8080:8080 -p 127.0.0.1:8081:8081 -v ./relay.toml:/etc/relay/relay.toml:ro \
#     -v relay-data:/var/lib/relay moderelay
#
# What the embedded store keeps lives in a volume: [store] url = "embedded:/var/lib/relay". With a Redis it is for the
# journal: [store] data_dir = "/var/lib/relay".
#
# In a container both listeners of relay.toml need host = "0.0.0.0". The second has no token on /metrics: do not publish it
# further than your monitoring. Another package index: --build-arg PIP_INDEX_URL=… (and PIP_TRUSTED_HOST, PIP_CERT as pip
# knows them).
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# The locks first: a change of our own code does not fetch the dependencies again. What builds the wheel stays behind.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /opt/relay \
 && /opt/relay/bin/pip install --only-binary :all: --require-hashes -r requirements.lock \
 && python -m venv /opt/build \
 && /opt/build/bin/pip install --only-binary :all: --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
COPY plugins plugins
RUN /opt/build/bin/hatchling build --target wheel --directory /wheels \
 && /opt/relay/bin/pip install --no-deps --no-index /wheels/*.whl \
 && /opt/relay/bin/pip uninstall --yes pip

FROM ${BASE}
# A number, so that Kubernetes can verify runAsNonRoot.
RUN groupadd --gid 10001 relay \
 && useradd --uid 10001 --gid relay --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin relay \
 && install --directory --owner 10001 --group 10001 --mode 700 /var/lib/relay
COPY --from=build /opt/relay /opt/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /var/lib/relay
USER 10001:10001
WORKDIR /
EXPOSE 8080 8081
# Whether it lives; whether it is ready is a load balancer's question, at /readyz. No proxy lies between it and itself.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["python", "-c", \
  "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8081/healthz', timeout=2)"]
ENTRYPOINT ["relay"]
CMD ["serve", "--config", "/etc/relay/relay.toml"]
