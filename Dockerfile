FROM python:3.13-slim-trixie AS build
RUN python -m venv /opt/trivium
WORKDIR /src
# A separate layer for the locked dependencies: they change less often than the code.
COPY requirements.txt ./
RUN /opt/trivium/bin/pip install --no-cache-dir --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md ./
COPY migrations migrations
COPY registry registry
COPY service service
RUN /opt/trivium/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim-trixie
# A numeric user, so that Kubernetes' runAsNonRoot can verify that it is not root. A named volume that is mounted on
# /data gets the directory's owner.
RUN useradd --uid 10001 --user-group --home-dir /data --no-create-home trivium \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=build /opt/trivium /opt/trivium
ENV PATH=/opt/trivium/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    TRIVIUM_HOME=/data \
    TRIVIUM_HOST=0.0.0.0 \
    TRIVIUM_PORT=8080
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['TRIVIUM_PORT']}/readyz\", timeout=4)"]
ENTRYPOINT ["trivium"]
CMD ["serve"]
