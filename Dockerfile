# edlm_jax for launch/gke.sh (TPU) and for Slurm nodes with containers (CUDA):
#
#   docker build --target=tpu --tag=REGISTRY/edlm:tpu .
#   docker build --target=cuda --tag=REGISTRY/edlm:cuda .
#
# Not yet built: the file is checked by a linter alone.

FROM python:3.12-slim AS source
WORKDIR /opt/edlm_jax
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY edlm_jax edlm_jax
# What the interpreter writes is lost with the container, and logs must not wait in a buffer.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

FROM source AS tpu
# What is installed is this source: there is no version to pin.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[tpu]'
WORKDIR /work
ENTRYPOINT ["edlm"]

# The wheels bring CUDA; the driver and nvidia-container-toolkit are the node's.
FROM source AS cuda
# What is installed is this source: there is no version to pin.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[cuda]'
WORKDIR /work
ENTRYPOINT ["edlm"]
