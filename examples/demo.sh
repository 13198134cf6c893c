#!/bin/sh
# The main job, command by command: a model is added, served, and asked what is in a picture.
# REPOSITORY=DIR puts the model elsewhere than in model_repository.
set -eu
cd "$(dirname "$0")/.."
[ -z "${REPOSITORY:-}" ] || set -- --repository "$REPOSITORY"

show() { printf '\n$ %s\n' "$*" >&2; "$@"; }

show repo-builder add examples/efficientnet-lite0/model.onnx \
  --image efficientnet-lite --labels examples/efficientnet-lite0/labels.txt "$@"

output=$(mktemp)
port=
trap 'rm -f "$output"; [ -z "$port" ] || repo-builder stop --http-port "$port"' EXIT
trap 'exit 130' INT TERM

# Port 0 is any free port, so that the demo runs beside whatever else listens here.
show repo-builder serve --model efficientnet-lite0 --http-port 0 --grpc-port 0 --metrics-port 0 --detach "$@" > "$output"
cat "$output"
TRITON_URL=$(sed -n 's/^HTTP *//p' "$output")
export TRITON_URL
port=${TRITON_URL##*:}

show python -m client.infer examples/cat.jpg
echo
