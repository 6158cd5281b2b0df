#!/usr/bin/env bash
# SFT, reward model, DPO, the merged model and PPO; repeat it to continue.
# Arguments go to `contrl run`: --dry_run, defaults.model_name_or_path=gpt2-large, defaults.dataset_name=hh ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
exec "${PYTHON:-python}" -m contrl run pipeline.yaml "$@"
