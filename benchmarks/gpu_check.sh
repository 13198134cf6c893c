#!/usr/bin/env bash
# All that needs a GPU, most important first.  Run in the project's root on a machine with an NVIDIA GPU, TensorRT and
# PyTorch:   bash benchmarks/gpu_check.sh [STAGE...]
# Stages: networks publish tests table polygraphy serve single cuda_memory, and for text: transformers table-transformers, pytorch
#
#   PYTHON          Python with TensorRT and this project (default python3)
#   TORCH_PYTHON    Python with PyTorch, torchvision and transformers, to export the networks (default python3)
#   TACTIC_SOURCES  for a TensorRT without cuBLAS and cuDNN: -CUBLAS,-CUBLAS_LT,-CUDNN
#   NETWORKS        where the exported networks are kept (default /tmp/networks)
#   RESULTS         where figures go (default benchmarks/results)
set -uo pipefail
python=${PYTHON:-python3}
torch_python=${TORCH_PYTHON:-python3}
networks=${NETWORKS:-/tmp/networks}
results=${RESULTS:-benchmarks/results}
sources=${TACTIC_SOURCES:-}
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(networks publish tests)
failed=0

bench() { # stage, models and options
  "$python" benchmarks/tensorrt_h100.py "$@" --networks "$networks" --results "$results/tensorrt.json" \
    "--tactic-sources=$sources" || failed=1
}

for stage in "${stages[@]}"; do
  echo "== $stage"
  case $stage in
    networks) "$torch_python" benchmarks/export_networks.py --output "$networks" resnet18_28x28 resnet18 resnet50 || failed=1 ;;
    transformers) "$torch_python" benchmarks/export_networks.py --output "$networks" vit_b_16 bert_base || failed=1 ;;
    pytorch) "$torch_python" benchmarks/export_networks.py --output "$networks" --time "$results/pytorch.json" \
      resnet18_28x28 resnet50 vit_b_16 bert_base || failed=1 ;;
    publish) bench publish resnet18_28x28 resnet18 resnet50 ;;
    tests) GPU_TACTIC_SOURCES=$sources "$python" -m pytest -m gpu tests/gpu || failed=1 ;;
    table) bench table resnet50 resnet18_28x28 ;;
    table-transformers) bench table vit_b_16 bert_base ;;
    polygraphy) bench polygraphy resnet50 ;;
    serve) bench serve resnet50 --perf-analyzer "${PERF_ANALYZER:-perf_analyzer}" ;;
    single) bench single resnet50 --perf-analyzer "${PERF_ANALYZER:-perf_analyzer}" ;;
    cuda_memory) bench cuda_memory resnet50 ;;
    *) echo "unknown stage $stage" >&2; failed=2 ;;
  esac
done
exit $failed
