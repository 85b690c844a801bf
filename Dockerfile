# One image for all: driver, Ray nodes, Prefect's server and worker, MLflow's server, the app.
#   docker build -t har .                                    PyTorch for CUDA, as on PyPI
#   docker build -t har:cpu --build-arg UV_TORCH_BACKEND=cpu .    PyTorch for the CPU, from PyTorch's own index
# Behind a proxy that signs TLS itself, give its certificates (HTTPS_PROXY is known to Docker without a declaration):
#   docker build --secret id=ca,src=FILE.pem --build-arg SSL_CERT_FILE=/run/secrets/ca .
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS environment
ARG UV_VERSION=0.13.9
ARG UV_TORCH_BACKEND
ARG SSL_CERT_FILE
ENV VIRTUAL_ENV=/opt/venv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /opt/har
COPY pyproject.toml constraints.txt ./
COPY deploy/image.txt deploy/
RUN --mount=type=secret,id=ca --mount=type=cache,id=uv,target=/root/.cache/uv \
    python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir ${SSL_CERT_FILE:+--cert "$SSL_CERT_FILE"} "uv==$UV_VERSION" \
    && /opt/venv/bin/uv pip install --quiet --constraint constraints.txt \
        --requirements deploy/image.txt --requirements pyproject.toml --extra postgresql --extra s3 --extra timm --extra hf

FROM python:${PYTHON}-slim
# gcc: Triton compiles its launchers when a model first trains on a GPU. wget: KubeRay's probes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home har
ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /opt/har
COPY --from=environment /opt/venv /opt/venv
COPY . .
# The code is root's, so that nobody changes it; only the workspace is har's. Mount a volume there.
RUN uv pip install --quiet --offline --no-deps --no-build-isolation --compile-bytecode --editable . \
    && python -m compileall -q demo flows params pipeline_lib tasks \
    && install --directory --owner har --group har workspace
USER 1000
CMD ["har", "--help"]
