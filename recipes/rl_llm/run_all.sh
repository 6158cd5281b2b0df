#!/usr/bin/env bash
# SFT, DPO, RLOO with its reward model, and three evaluations, without asking anything; repeat it to continue.
# Arguments go to `contrl run`: --dry_run, --log_model checkpoint, output_dir=..., steps.dpo.learning_rate=1e-6 ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

export WANDB_PROJECT="${WANDB_PROJECT:-cs224r_deeprl_final}"

judge=()
NVIDIA_API_KEY="${NVIDIA_API_KEY:-${NEMOTRON_API_KEY:-}}"
if [[ -n "$NVIDIA_API_KEY" ]]; then
  export NVIDIA_API_KEY
  echo "judge: Nemotron"
  for step in sft dpo rloo; do
    judge+=("steps.$step/eval.judge=yes" "steps.$step/eval.reward_model=null")
  done
else
  unset NVIDIA_API_KEY
  echo "judge: the reward model of this pipeline, which also rewards RLOO; NVIDIA_API_KEY asks Nemotron instead"
fi

exec "${PYTHON:-python}" -m contrl run pipeline.yaml ${judge[@]+"${judge[@]}"} "$@"
