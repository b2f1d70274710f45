# Made by mfimage 1.2.3: function predict, target fastapi.
#
# Each folder in layers/ has the files of one layer. It is copied to /, so that parent folders get fixed
# times too: the layer's digest depends on its content alone.

# Build stage: uv installs what the lock lists, and verifies hashes. Only /out is copied from it.
FROM registry.example.com:5000/team/python:3.11@sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a AS build
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
    --mount=type=secret,id=UV_INDEX_COMPANY_PASSWORD,target=/run/secrets/UV_INDEX_COMPANY_PASSWORD \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=netrc,target=/run/secrets/netrc \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    export PIP_INDEX_URL=https://packages.example.com/simple UV_DEFAULT_INDEX=company=https://packages.example.com/simple && \
    export PIP_EXTRA_INDEX_URL='https://more.example.com/simple https://most.example.com/a~b/simple' UV_INDEX='https://more.example.com/simple https://most.example.com/a~b/simple' && \
    if [ -s /run/secrets/UV_INDEX_COMPANY_PASSWORD ]; then UV_INDEX_COMPANY_PASSWORD="$(cat /run/secrets/UV_INDEX_COMPANY_PASSWORD)"; export UV_INDEX_COMPANY_PASSWORD; fi && \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi && \
    if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi && \
    if [ -s /etc/pip.conf ] && url="$(python3 -m pip config --global get global.index-url 2>&-)"; then export UV_DEFAULT_INDEX="$url"; fi && \
    if [ -s /etc/pip.conf ] && url="$(python3 -m pip config --global get global.extra-index-url 2>&-)"; then export UV_INDEX="$(echo $url)"; fi && \
    python3 -m pip install --quiet --target=/opt/uv --no-deps --only-binary=:all: \
        --require-hashes --requirement=/build/uv.txt
RUN --mount=type=cache,id=mfimage-uv,target=/var/cache/mfimage/uv \
    --mount=type=bind,source=build/lock,target=/build/lock \
    --mount=type=secret,id=UV_INDEX_COMPANY_PASSWORD,target=/run/secrets/UV_INDEX_COMPANY_PASSWORD \
    --mount=type=secret,id=ca,target=/run/secrets/ca \
    --mount=type=secret,id=netrc,target=/run/secrets/netrc \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    export PIP_INDEX_URL=https://packages.example.com/simple UV_DEFAULT_INDEX=company=https://packages.example.com/simple && \
    export PIP_EXTRA_INDEX_URL='https://more.example.com/simple https://most.example.com/a~b/simple' UV_INDEX='https://more.example.com/simple https://most.example.com/a~b/simple' && \
    if [ -s /run/secrets/UV_INDEX_COMPANY_PASSWORD ]; then UV_INDEX_COMPANY_PASSWORD="$(cat /run/secrets/UV_INDEX_COMPANY_PASSWORD)"; export UV_INDEX_COMPANY_PASSWORD; fi && \
    if [ -s /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi && \
    if [ -s /run/secrets/netrc ]; then export NETRC=/run/secrets/netrc; fi && \
    if [ -s /etc/pip.conf ] && url="$(python3 -m pip config --global get global.index-url 2>&-)"; then export UV_DEFAULT_INDEX="$url"; fi && \
    if [ -s /etc/pip.conf ] && url="$(python3 -m pip config --global get global.extra-index-url 2>&-)"; then export UV_INDEX="$(echo $url)"; fi && \
    for folder in /opt/venv /opt/function /opt/mfimage; do if [ -e "$folder" ]; then \
        echo "base-image: it has $folder, which is mfimage's own; choose another base" >&2; exit 1; fi; done && \
    /opt/uv/bin/uv venv --quiet --python=3.11 /opt/venv && \
    /opt/uv/bin/uv pip install --python=/opt/venv/bin/python \
        --require-hashes --no-build --requirement=/build/lock/pylock.toml && \
    rm -f /opt/venv/.lock /opt/venv/.gitignore /opt/venv/CACHEDIR.TAG && \
    # Compiled once here rather than at each start; tests are not imported.
    { /opt/venv/bin/python -m compileall -qq -j 0 -x '/tests?/' \
        --invalidation-mode unchecked-hash /opt/venv/lib || true; } && \
    mkdir -p /out/opt /out/opt/function/code && \
    mv /opt/venv /out/opt/venv && \
    find /out -exec touch --no-dereference --date=@315532800 {} +

# mfimage's own files, compiled too.
FROM registry.example.com:5000/team/python:3.11@sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a AS runtime
USER 0:0
COPY layers/runtime/ /out/
RUN { PYTHONHASHSEED=0 python3 -m compileall -qq -s /out -p / --invalidation-mode unchecked-hash /out/opt/mfimage || true; } && \
    find /out -exec touch --no-dereference --date=@315532800 {} +

# The image.
FROM registry.example.com:5000/team/python:3.11@sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a
USER 0:0
RUN --mount=type=cache,id=mfimage-apt,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,id=mfimage-apt-lists,target=/var/lib/apt/lists,sharing=locked \
    --mount=type=tmpfs,target=/var/log \
    --mount=type=secret,id=ca,target=/var/log/ca.pem \
    if [ -s /var/log/ca.pem ]; then echo 'Acquire::https::CAInfo "/var/log/ca.pem";' >/var/log/apt.conf; export APT_CONFIG=/var/log/apt.conf; fi && \
    mkdir -p /var/cache/apt/mfimage/partial && \
    apt-get update && \
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        --option=Dir::Cache::archives=mfimage/ -- \
        git=1:2.39.5-0+deb12u2 \
        libgomp1
COPY --from=build /out/ /
# It makes an empty layer, so it comes before those that change often.
WORKDIR /opt/function/code
# model
COPY layers/artifact-8dc41a85a349b16d/ /
# feature_names
COPY layers/artifact-aeb24056810d3d1f/ /
COPY --from=runtime /out/ /
COPY layers/code/ /
ENV PATH="/opt/venv/bin:$PATH" \
    PYTHONPATH="/opt/mfimage" \
    PYTHONUNBUFFERED="1" \
    PYTHONDONTWRITEBYTECODE="1" \
    HOME="/tmp" \
    USER="mfimage" \
    GREETING="say \"hello\" to \$USER \\ all" \
    EMPTY=""
LABEL \
    io.mfimage.artifacts="{\"feature_names\":\"sha256:aeb24056810d3d1f1e8afee61a0bc0028556eb0fb49a215ae5eb1b970cad0315\",\"model\":\"sha256:8dc41a85a349b16d38eb92ab70e4cbcd7be7c0958bd92794745a9437e52dff80\"}" \
    io.mfimage.function.digest="sha256:<function>" \
    io.mfimage.function.name="predict" \
    io.mfimage.lock.digest="sha256:cb80f78e7fd8033f71bc1b8018164af35452d15b2a4173b68703a97de261c9ad" \
    io.mfimage.python="3.11" \
    io.mfimage.schema.input="{\"type\":\"object\"}" \
    io.mfimage.schema.output="{\"additionalProperties\":{\"type\":\"integer\"},\"type\":\"object\"}" \
    io.mfimage.target="fastapi" \
    io.mfimage.task="MyTrainFlow/123/train/456" \
    io.mfimage.version="1.2.3" \
    org.opencontainers.image.base.digest="sha256:0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a" \
    org.opencontainers.image.base.name="registry.example.com:5000/team/python:3.11" \
    org.opencontainers.image.description="Run inference using the bound model." \
    org.opencontainers.image.revision="0123456789abcdef0123456789abcdef01234567" \
    org.opencontainers.image.title="predict" \
    org.opencontainers.image.version="<function>" \
    com.example.team="data"
USER 1000:0
EXPOSE 8000
STOPSIGNAL SIGTERM
# The base's would check another program. Our own would start Python every few seconds, and Kubernetes
# ignores it: probe GET /healthz and GET /readyz.
HEALTHCHECK NONE
ENTRYPOINT ["/opt/venv/bin/python", "-m", "mfimage.runtime"]
CMD ["serve"]
