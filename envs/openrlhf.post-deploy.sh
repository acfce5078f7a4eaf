#!/usr/bin/env bash
# Built against the environment's own torch; DeepSpeed compiles its operators when they are first used.
set -euo pipefail
DS_BUILD_OPS=0 pip install --no-deps --no-build-isolation flash-attn==2.8.3 deepspeed==0.19.6 openrlhf==0.11.2
