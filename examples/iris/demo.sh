#!/usr/bin/env bash
# From training to an HTTP response. `make demo` prepares the engine and the base image.
set -euo pipefail
cd "$(dirname "$0")"

work=$(mktemp -d)
container=""
trap '[ -z "$container" ] || docker rm --force "$container" >/dev/null; rm -rf "$work"' EXIT
cp train.py classify.py "$work"
cd "$work"

# Metaflow does not accept root as a user.
if [ "$(id -un)" = root ]; then export METAFLOW_USER="${METAFLOW_USER:-demo}"; fi
run() { printf '\n$ %s\n' "$*" >&2; "$@"; }

run python train.py run
reference=$(run mfimage bind classify.py:classify --task IrisFlow/"$(cat .metaflow/IrisFlow/latest_run)"/train)
echo "$reference"
image=$(run mfimage build "$reference" --target fastapi --tag iris:1)

container=$(run docker run --detach --publish 127.0.0.1::8000 "$image")
address=$(docker port "$container" 8000/tcp | head -n 1)
for _ in $(seq 100); do curl -fsS "http://$address/readyz" >/dev/null 2>&1 && break; sleep 0.1; done

run curl -fsS "http://$address/classify" \
  -d '{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}'
echo
run mfimage inspect "$image"
run docker images iris
