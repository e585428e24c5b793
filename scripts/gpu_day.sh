#!/usr/bin/env bash
# Everything that one GPU can say of moejax, in at most nine minutes:
#
#   OUT=build/gpu_day scripts/gpu_day.sh
#
# 1. the tests marked gpu; 2. every kernel against the reference, then timed; 3. prefill and decode of the whole model at
# batch 1, 8 and 32 with prompts of 4,096 tokens, then transformers' beside; 4. predictions beside what was measured. The
# results are JSON in $OUT, with a log of each part and the page (page.md), which
# `python -m scripts.gpu_page $OUT --docs` makes docs/gpu.md of. A part that fails or runs out of its time is named, and
# the others go on. `--tiny` walks the same way on a CPU, with a model that MODEL names: for tests, its times mean nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OUT="${OUT:-build/gpu_day}"
PYTHON="${PYTHON:-python}"
MODEL="${MODEL:-mixtral-8x7b}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}" PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
mkdir -p "$OUT"

tests=(-m gpu) kernels=(--no-model) size=(-b 1,8,32 -p 4096 -n 64 -r 2) peer=(-b 1,8,32 -p 4096 -n 32)
if [ "${1:-}" = --tiny ]; then
  tests=(--collect-only) kernels=(--tiny) size=(-b 1 -p 16 -n 4 -r 1) peer=(-b 1 -p 16 -n 4 -r 1 --forms generate)
elif [ $# -gt 0 ]; then
  echo "usage: [OUT=folder] [MODEL=name] scripts/gpu_day.sh [--tiny]" >&2
  exit 2
fi

failed=0
part() { # part NAME SECONDS COMMAND...
  local name="$1" limit="$2" began=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
  case $status in
  0) echo "$name: done in $((SECONDS - began)) s" ;;
  124) echo "$name: STOPPED after its $limit s, see $name.log" ;;
  *) echo "$name: FAILED with $status, see $name.log" && tail -n 5 "$OUT/$name.log" ;;
  esac
  [ $status -eq 0 ] || failed=1
}

rm -f "$OUT"/{kernels,latency,peer}.json "$OUT/page.md"
part tests 120 "$PYTHON" -m pytest -q -p no:cacheprovider "${tests[@]}" tests/moejax/ops/triton
part kernels 150 "$PYTHON" -m scripts.bench_kernels "${kernels[@]}" --json "$OUT/kernels.json"
part latency 140 bash -c '"$0" -m moejax bench latency --json "$@" >"$OUT/latency.json"' "$PYTHON" --random "$MODEL" "${size[@]}"
part peer 110 "$PYTHON" -m scripts.gpu_peer --model "$MODEL" "${peer[@]}" --json "$OUT/peer.json"
part page 20 bash -c '"$0" -m scripts.gpu_page "$@" >"$OUT/page.md"' "$PYTHON" "$OUT" --model "$MODEL"
[ ! -s "$OUT/page.md" ] || cat "$OUT/page.md"
exit $failed
