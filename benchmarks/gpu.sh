#!/usr/bin/env bash
# All records that need a GPU (an H200 or H100), and the tables and figures made from them.
#
#   pip install -e ".[report]"      with a CUDA build of torch
#   benchmarks/gpu.sh
#
# To see on a CPU that it goes through, in a folder that is thrown away:
#   DEVICE=cpu MODELS=SmolLM2-135M FIGURE="" LAYERS=1 SEQ=16 BATCHES=1 ROUNDS=1 WIDE="1 4" RESULTS=$(mktemp -d) benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICE=${DEVICE:-cuda}
MODELS=${MODELS:-"Llama-3-8B LLaMA-7B"}
FIGURE=${FIGURE-"RoBERTa-base RoBERTa-large"}
BATCHES=${BATCHES:-"2 8"}
SEQ=${SEQ:-512}
ROUNDS=${ROUNDS:-30}
WIDE=${WIDE:-"1 2 4 8 16 20 32 64 128 256 512"}
RESULTS=${RESULTS:-benchmarks/results}
layers=(); [ -z "${LAYERS:-}" ] || layers=(--layers "$LAYERS")
common=(--device "$DEVICE" --rounds "$ROUNDS")

step() { neuroada bench step "${common[@]}" "${layers[@]}" --output "$RESULTS/step.jsonl" "$@"; }
op() { neuroada bench op "${common[@]}" --output "$RESULTS/op.jsonl" "$@"; }

for model in $MODELS; do
  for batch in $BATCHES; do
    at=(--shape "$model" --batch "$batch" --seq "$SEQ")
    # Methods that share the base's weights run interleaved in one process; those that write to them have it to
    # themselves with the frozen limit, so that weights, gradients and states fit.
    step "${at[@]}" --methods neuroada,neuroada-unheld,lora,scatter,dora,shira,supertuning,peanut,oft,miss --k 1 --k 20
    step "${at[@]}" --methods mask --k 1
    step "${at[@]}" --methods mask-compact --k 1
    step "${at[@]}" --methods full
    op "${at[@]}" --part layer --methods neuroada,neuroada-unheld,lora,scatter,mask,full --k 1 --k 20
    ks=(); for k in $WIDE; do ks+=(--k "$k"); done
    op "${at[@]}" --part product "${ks[@]}"
  done
done
for model in $FIGURE; do
  step --shape "$model" --batch 2 --methods neuroada,lora,scatter,mask,mask-compact,full --k 1
done
neuroada bench switch --device "$DEVICE" --output "$RESULTS/switch.jsonl"
neuroada bench select --device "$DEVICE" --shape "${MODELS%% *}" --output "$RESULTS/select.jsonl"
[ "$RESULTS" != benchmarks/results ] || neuroada bench render
