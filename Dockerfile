# syntax=docker/dockerfile:1
#
#   docker build --target cpu -t slidestream:cpu .
#   docker build --target gpu -t slidestream:gpu .
#
# The GPU image has the packages of TensorRT, which are proprietary (NVIDIA's licence agreement for TensorRT): who builds it
# accepts that. CUDA's driver comes from the host (NVIDIA Container Toolkit). docs/operations.md says how to run them.

ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY pipeline pipeline
COPY stages stages
COPY engines engines
COPY slides slides
COPY results results
COPY review review
COPY models models
COPY configs configs
RUN python -m venv /opt/slidestream \
    && /opt/slidestream/bin/pip install --no-cache-dir .

FROM build AS build-gpu
RUN /opt/slidestream/bin/pip install --no-cache-dir '.[tensorrt]'

FROM python:${PYTHON} AS base
# The first user of most hosts is 1000; results on a mounted folder should not belong to somebody by chance.
RUN groupadd --gid 10001 slidestream \
    && useradd --uid 10001 --gid slidestream --no-create-home --home-dir /var/lib/slidestream --shell /usr/sbin/nologin slidestream \
    && install -d -o slidestream -g slidestream -m 0700 /var/lib/slidestream /results \
    && install -d -m 0755 /etc/slidestream /slides
ENV PATH=/opt/slidestream/bin:$PATH \
    STATE_DIRECTORY=/var/lib/slidestream \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/slidestream
VOLUME ["/var/lib/slidestream"]
STOPSIGNAL SIGTERM
EXPOSE 8750
# The first minutes may go into loading engines; after that, three answers in a row that are missing or bad.
HEALTHCHECK --interval=30s --timeout=10s --start-period=10m --retries=3 \
    CMD ["python", "-m", "pipeline.service.healthcheck"]
ENTRYPOINT ["slidestream"]
CMD ["serve", "--config", "/etc/slidestream/slidestream.yaml"]

FROM base AS gpu
COPY --from=build-gpu /opt/slidestream /opt/slidestream
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001

# The last target is what `docker build .` makes.
FROM base AS cpu
COPY --from=build /opt/slidestream /opt/slidestream
USER 10001:10001
