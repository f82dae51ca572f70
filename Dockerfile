# syntax=docker/dockerfile:1
# Two images: `--target api` (small, without torch) and `--target worker` (torch with the CUDA of
# PyPI's wheels, so that the host needs only NVIDIA's driver and container toolkit).
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS source
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/afluente
COPY pyproject.toml setup.py README.md LICENSE ./
COPY requirements requirements
COPY app app
COPY worker worker
COPY cli cli

FROM source AS build-api
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/afluente/bin/pip install -c requirements/lock.txt .

FROM source AS build-worker
# For a machine without a GPU: https://download.pytorch.org/whl/cpu, a tenth of the size.
ARG TORCH_INDEX_URL=""
RUN --mount=type=cache,target=/root/.cache/pip \
    PIP_EXTRA_INDEX_URL="${TORCH_INDEX_URL}" \
    /opt/afluente/bin/pip install -c requirements/lock.txt '.[worker,ctranslate2,vad]'

FROM python:${PYTHON_VERSION}-slim AS runtime
ENV PATH=/opt/afluente/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    AFLUENTE_DATA_DIR=/data
RUN groupadd --gid 10001 afluente \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin afluente \
 && install -d -o afluente -g afluente /data
WORKDIR /data
VOLUME /data
USER 10001:10001
ENTRYPOINT ["afluente"]

FROM runtime AS worker
COPY --from=build-worker /opt/afluente /opt/afluente
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s \
    CMD ["afluente", "worker", "--check"]
CMD ["worker"]

FROM runtime AS api
COPY --from=build-api /opt/afluente /opt/afluente
EXPOSE 8000
# -I: do not import from the working directory, which is the volume.
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s \
    CMD ["python", "-I", "-c", "import http.client as http; c = http.HTTPConnection('127.0.0.1', 8000, timeout=8); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
# Reachable from outside, so it needs an API key first (`docker compose run --rm api keys create`).
CMD ["api", "--host", "0.0.0.0", "--port", "8000"]
