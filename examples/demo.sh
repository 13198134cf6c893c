#!/bin/sh
# The main job, command by command: a model is added, served and asked what is in a picture.
set -eu
cd "$(dirname "$0")/.."

show() { printf '\n$ %s\n' "$*"; "$@"; }

show repo-builder add examples/efficientnet-lite0/model.onnx \
  --image efficientnet-lite --labels examples/efficientnet-lite0/labels.txt
