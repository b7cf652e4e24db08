#!/usr/bin/env bash
# The measurements of docs/benchmarks.md that need a GPU.
#
#   benchmarks/gpu.sh PART [FOLDER]
#
# PART      what                                                            on an H100 with 16 cores
# smoke     the tests for GPUs, then a little of everything                 12 minutes
# bits      the same bits over contexts, rows, batches, load, processes     3 minutes
# engines   every engine and precision beside PyTorch                       8 minutes
# stage     the inference stage against the bare loop; kill -9              8 minutes at most
# aoti      AOTInductor: its tests, stage, disk to disk, torch.compile      12 minutes at most
# whole     from disk to disk, on 16, 8 and 4 cores                         9 minutes at most
# gpus      one GPU and two: tests, stage, disk to disk               (on a machine with two; not measured yet)
# trained   FP16 and INT8 on a trained DenseNet-121 (WHEEL, LABELLED)       4 minutes
#
# Networks, engines and slides are made in FOLDER (default: /tmp/slidestream-gpu; 20 GB) and kept for the next part.
# JSON goes to $OUT (default: the current folder). $PYTHON (default: .venv/bin/python or python3) must have slidestream's
# packages, torch, TensorRT, cuda-python and nvidia-ml-py. For `trained`, see benchmarks/trained.py: WHEEL is its wheel,
# LABELLED a folder with the folders `tumour` and `other` of pictures.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit
part=${1:?smoke, bits, engines, stage, aoti, whole, gpus or trained}
folder=${2:-/tmp/slidestream-gpu}
out=${OUT:-.}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 SLIDESTREAM_ENGINES="$folder/engines"
mkdir -p "$folder" "$out"

# bench SECONDS MODULE ARGUMENTS...: one benchmark, which may take so long; a failure is told, and the next one runs.
bench() {
  local limit=$1 began=$SECONDS
  shift
  echo "== $* (at most $limit s)"
  timeout -s KILL "$limit" "$python" -m "$@" || echo "-- ended with code $?"
  echo "-- $((SECONDS - began)) s"
}

case $part in
  smoke)
    bench 240 pytest -q -m gpu tests/engines
    bench 480 pytest -q -m gpu tests/gpu
    bench 90 benchmarks.gpu_stage --networks resnet50 --batches 64 --contexts 2 --seconds 1 --folder "$folder" --out "$out/smoke-stage.json"
    bench 60 benchmarks.recovery --network resnet50 --blocks 8 --kills 1 --folder "$folder" --out "$out/smoke-recovery.json"
    bench 90 benchmarks.whole --networks resnet50 --cores 16 --large 6x6 --large-count 1 --count 6 --seconds 1 --folder "$folder" --out "$out/smoke-whole.json"
    bench 270 benchmarks.engines --networks resnet50 --batches 64 --compiled-batches 64 --contexts 2 --seconds 0.3 --folder "$folder" --out "$out/smoke-engines.json"
    ;;
  bits)
    bench 240 benchmarks.same_bits --network resnet50 --folder "$folder" --out "$out/bits-resnet50.json"
    ;;
  engines)
    bench 560 benchmarks.engines --networks resnet50 vit_b_16 densenet121 --batches 64 128 256 --compiled-batches 128 \
      --contexts 1 3 --seconds 0.5 --folder "$folder" --out "$out/engines.json"
    ;;
  stage)
    bench 150 benchmarks.gpu_stage --networks resnet50 --batches 64 128 --contexts 1 2 3 4 --seconds 1.5 --folder "$folder" --out "$out/stage-resnet50.json"
    bench 120 benchmarks.gpu_stage --networks vit_b_16 --batches 64 128 --contexts 1 2 3 --seconds 1.5 --folder "$folder" --out "$out/stage-vit.json"
    bench 80 benchmarks.gpu_stage --networks resnet50 vit_b_16 --batches 64 --processes 2 --contexts 1 2 --seconds 1.5 --folder "$folder" --out "$out/stage-two.json"
    bench 90 benchmarks.recovery --network resnet50 --kills 3 --folder "$folder" --out "$out/recovery.json"
    ;;
  whole)
    bench 220 benchmarks.whole --networks resnet50 --set tissue.workers=2 --set writer.workers=2 --folder "$folder" --out "$out/whole-resnet50.json"
    bench 230 benchmarks.whole --networks vit_b_16 --large-count 2 --no-loader --set tissue.workers=2 --folder "$folder" --out "$out/whole-vit.json"
    bench 60 benchmarks.memory --slide "$folder/large/13x12.tif" --slide "$folder/small/3x3.tif" --model "$folder/resnet50" \
      --set inference.engine=tensorrt --set inference.engines="$folder/engines-64" --set batcher.batch=64 --json
    ;;
  aoti)
    bench 300 pytest -v -x -m gpu tests/gpu -k aoti
    bench 150 benchmarks.gpu_stage --networks resnet50 --engine aoti --batches 128 --contexts 2 3 --seconds 1.5 --folder "$folder" --out "$out/stage-aoti.json"
    bench 120 benchmarks.whole --networks resnet50 --engine aoti --batch 128 --cores 16 --no-loader --folder "$folder" --out "$out/whole-aoti.json"
    bench 240 benchmarks.engines --networks resnet50 vit_b_16 --variants "compile fp16" "aoti fp16" --batches 128 --compiled-batches 128 \
      --contexts 3 --seconds 0.4 --folder "$folder" --out "$out/engines-aoti.json"
    ;;
  gpus)
    bench 300 pytest -v -m gpu tests/gpu/test_two_gpus.py
    bench 150 benchmarks.gpu_stage --networks resnet50 vit_b_16 --batches 64 --gpus 1 2 --contexts 3 --seconds 1.5 --folder "$folder" --out "$out/stage-gpus.json"
    for devices in '[0]' '[0, 1]'; do
      bench 180 benchmarks.whole --networks resnet50 vit_b_16 --cores "$(nproc)" --no-loader --set tissue.workers=2 --set writer.workers=2 \
        --set "inference.devices=$devices" --folder "$folder" --out "$out/whole-gpus-${devices//[^0-9]/}.json"
    done
    ;;
  trained)
    bench 90 benchmarks.trained "${WHEEL:?}" "$folder/trained"
    bench 330 pipeline.cli bench engine "$folder/trained" --labelled "${LABELLED:?}" --positive tumour --variants "tensorrt fp32" \
      "tensorrt fp16" "tensorrt int8" "aoti fp16" --batches 64 --compiled-batches 64 --contexts 3 ${TISSUE:+--tissue "$TISSUE"} --out "$out/trained.json"
    ;;
  *)
    echo "unknown part: $part" >&2
    exit 2
    ;;
esac
