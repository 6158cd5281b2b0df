#!/usr/bin/env bash
# Qwen 0.5B through the four operator groups; repeat it to continue what was stopped. Arguments go to `contrl run`.
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" train_0.5b.yaml models/qwen models/countdown_continual "$@"
