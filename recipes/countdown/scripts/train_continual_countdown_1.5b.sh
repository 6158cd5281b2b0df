#!/usr/bin/env bash
# Qwen 1.5B through the four operator groups; repeat it to continue what was stopped. Arguments go to `contrl run`.
exec "$(dirname "${BASH_SOURCE[0]}")/train.sh" train_1.5b.yaml models/qwen1.5b models/countdown_continual_1.5b "$@"
