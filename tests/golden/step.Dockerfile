# Made by mfimage 1.2.3: step train, target step.
#
# Each folder in layers/ has the files of one layer. It is copied to /, so that parent folders get fixed
# times too: the layer's digest depends on its content alone.

# Build stage: uv installs what the lock lists, and verifies hashes. Only /out is copied from it.
FROM python:3.11-slim AS build
USER 0:0
ENV PIP_CACHE_DIR=/var/cache/mfimage/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    UV_CACHE_DIR=/var/cache/mfimage/uv \
    UV_LINK_MODE=copy \
    UV_NO_CONFIG=1 \
    UV_NO_INSTALLER_METADATA=1 \
    UV_NO_PROGRESS=1 \
    UV_PREVIEW_FEATURES=pylock \
    UV_PYTHON_DOWNLOADS=never
RUN --mount=type=cache,id=mfimage-pip,target=/var/cache/mfimage/pip \
    --mount=type=bind,source=build/uv.txt,target=/build/uv.txt \
    python3 -m pip install --quiet --target=/opt/uv --no-deps --only-binary=:all: \
        --require-hashes --requirement=/build/uv.txt
RUN --mount=type=cache,id=mfimage-uv,target=/var/cache/mfimage/uv \
    --mount=type=bind,source=build/lock,target=/build/lock \
    for folder in /opt/venv /opt/function /opt/mfimage; do if [ -e "$folder" ]; then \
        echo "base-image: it has $folder, which is mfimage's own; choose another base" >&2; exit 1; fi; done && \
    /opt/uv/bin/uv venv --quiet --python=3.11 /opt/venv && \
    /opt/uv/bin/uv pip install --python=/opt/venv/bin/python \
        --require-hashes --no-build --requirement=/build/lock/pylock.toml && \
    rm -f /opt/venv/.lock /opt/venv/.gitignore /opt/venv/CACHEDIR.TAG && \
    # Compiled once here rather than at each start; tests are not imported.
    { /opt/venv/bin/python -m compileall -qq -j 0 -x '/tests?/' \
        --invalidation-mode unchecked-hash /opt/venv/lib || true; } && \
    mkdir -p /out/opt /out/metaflow && \
    chmod 1777 /out/metaflow && \
    mv /opt/venv /out/opt/venv && \
    find /out -exec touch --no-dereference --date=@315532800 {} +

# mfimage's own files, compiled too.
FROM python:3.11-slim AS runtime
USER 0:0
COPY layers/runtime/ /out/
RUN { PYTHONHASHSEED=0 python3 -m compileall -qq -s /out -p / --invalidation-mode unchecked-hash /out/opt/mfimage || true; } && \
    find /out -exec touch --no-dereference --date=@315532800 {} +

# The image.
FROM python:3.11-slim
USER 0:0
COPY --from=build /out/ /
# It makes an empty layer, so it comes before those that change often.
WORKDIR /metaflow
COPY --from=runtime /out/ /
COPY layers/code/ /
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONPATH="/opt/mfimage" \
    PYTHONUNBUFFERED="1" \
    PYTHONDONTWRITEBYTECODE="" \
    HOME="/tmp" \
    USER="mfimage" \
    MFIMAGE_TARGET="step" \
    METAFLOW_SKIP_INSTALL_DEPENDENCIES="1"
LABEL \
    io.mfimage.flow="TrainFlow" \
    io.mfimage.lock.digest="sha256:cb80f78e7fd8033f71bc1b8018164af35452d15b2a4173b68703a97de261c9ad" \
    io.mfimage.python="3.11" \
    io.mfimage.step.digest="sha256:<function>" \
    io.mfimage.step.name="train" \
    io.mfimage.target="step" \
    io.mfimage.version="1.2.3" \
    org.opencontainers.image.base.name="docker.io/library/python:3.11-slim" \
    org.opencontainers.image.title="train" \
    org.opencontainers.image.version="<function>"
USER 1000:0
STOPSIGNAL SIGTERM
# The base's would check another program. Our own would start Python every few seconds, and Kubernetes
# ignores it.
HEALTHCHECK NONE
ENTRYPOINT []
CMD ["python"]
