#!/usr/bin/env bash
# train.sh FILE.yaml MODEL OUTPUT [ARGUMENT ...]: `contrl run` with what the environment says:
#   BASE_MODEL        the model to start from, instead of MODEL
#   N_GPUS            processes; above 1 torchrun starts them
#   ROLLOUT_TP_SIZE   only 1: see below
#   DATA_DIR          holds continual/<group>/{train,test}.parquet
#   OVERRIDES         words for `contrl run`, such as "rounds=1 training.max_steps=100"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

file="$1" model="${BASE_MODEL:-$2}" output="$3"
shift 3
n_gpus="${N_GPUS:-1}" tp="${ROLLOUT_TP_SIZE:-1}" data="${DATA_DIR:-data}"
python="${PYTHON:-python}"

for value in "N_GPUS=$n_gpus" "ROLLOUT_TP_SIZE=$tp"; do
  [[ "${value#*=}" =~ ^[1-9][0-9]*$ ]] || { echo "error: $value is no number of GPUs" >&2; exit 2; }
done
if ((tp > 1)); then
  cat >&2 <<REASON
error: ROLLOUT_TP_SIZE=$tp cannot be had
  contrl samples in the training processes: each of them holds the whole model and samples its own share of the prompts,
  so there is no separate engine whose tensors could be divided, and nothing for $tp GPUs to share
  use ROLLOUT_TP_SIZE=1; N_GPUS=$n_gpus alone decides how many GPUs sample and train side by side
REASON
  exit 2
fi

launcher=("$python")
if ((n_gpus > 1)); then
  launcher=("$python" -m torch.distributed.run --standalone --nproc_per_node "$n_gpus")
fi
groups=()
for group in plus plus_minus plus_minus_mul plus_minus_mul_div; do
  groups+=("tasks.$group.data=$data/continual/$group")
done
if [[ -z "${BASE_MODEL:-}" && ! -e "$model" ]]; then
  echo "error: there is no model at $PWD/$model; put one there, or set BASE_MODEL to a folder or a hub id" >&2
  exit 2
fi
# A model of a single word is a name; here it is always a folder or a hub id.
[[ -d "$model" && "$model" != */* ]] && model="./$model"
read -ra overrides <<<"${OVERRIDES:-}"

exec "${launcher[@]}" -m contrl run "$file" "model=$model" "output_dir=$output" "${groups[@]}" \
  ${overrides[@]+"${overrides[@]}"} "$@"
