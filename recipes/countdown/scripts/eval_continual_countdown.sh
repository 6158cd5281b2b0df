#!/usr/bin/env bash
# Models, logs, metrics and plots of the runs: of both sizes, or with --model-size 0.5b|1.5b of one; at any time.
#   --metrics-dir, --plots-dir, --logs-dir (METRICS_DIR, PLOTS_DIR, LOGS_DIR)   where they go
#   --overwrite                                                              replace those of another run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

sizes=() metrics="${METRICS_DIR:-metrics}" plots="${PLOTS_DIR:-plots}" logs="${LOGS_DIR:-logs}" more=()
while (($#)); do
  case "$1" in
    --overwrite) more+=(--overwrite) ;;
    --model-size | --metrics-dir | --plots-dir | --logs-dir)
      (($# > 1)) || { echo "error: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --model-size) sizes+=("$2") ;;
        --metrics-dir) metrics="$2" ;;
        --plots-dir) plots="$2" ;;
        --logs-dir) logs="$2" ;;
      esac
      shift
      ;;
    *)
      echo "error: $1 is unknown; known: --model-size, --metrics-dir, --plots-dir, --logs-dir, --overwrite" >&2
      exit 2
      ;;
  esac
  shift
done

run_of() {
  case "$1" in
    0.5b) echo models/countdown_continual ;;
    1.5b) echo models/countdown_continual_1.5b ;;
    *) echo "error: --model-size $1; use 0.5b or 1.5b" >&2; exit 2 ;;
  esac
}

if ((${#sizes[@]} == 0)); then
  for size in 0.5b 1.5b; do
    if [[ -e "$(run_of "$size")/run.json" ]]; then
      sizes+=("$size")
    else
      echo "$size: nothing is trained in $(run_of "$size"), left out"
    fi
  done
  ((${#sizes[@]})) || { echo "error: no model is trained; scripts/train_continual_countdown.sh does" >&2; exit 2; }
fi
for size in "${sizes[@]}"; do
  run="$(run_of "$size")"
  "${PYTHON:-python}" -m contrl export-countdown "$run" --size "$size" \
    --metrics_dir "$metrics" --plots_dir "$plots" --logs_dir "$logs" ${more[@]+"${more[@]}"}
done
