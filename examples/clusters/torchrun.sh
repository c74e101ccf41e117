#!/bin/bash
# The program under torchrun. On every machine, in any order, also later:
#
#   examples/clusters/torchrun.sh FIRST MIN:MAX FOLDER [STEPS]
#
# FIRST is the address of a machine that lasts: its agent holds the store. FOLDER is on a disk that all machines see.
# A machine that is lost, or comes, has all workers start again from the newest checkpoint, with who is there.
set -eu
first=$1 nodes=$2
shift 2
export SWARMSTEP_SECRET_FILE=${SWARMSTEP_SECRET_FILE:-$HOME/.swarmstep-secret}
own=$(ip route get "$first" | sed -n 's/.* src \([^ ]*\).*/\1/p') # the address of this machine on the way there
# Else agents keep the store of their first group, and one that comes later is not told where it is (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
is_host=$([ "$own" = "$first" ] && echo true || echo false)

exec "${PYTHON:-python}" -m torch.distributed.run --nnodes="$nodes" --nproc-per-node=1 --max-restarts=100 \
    --local-addr="$own" --rdzv-id=rings --rdzv-backend=c10d --rdzv-endpoint="$first:29400" \
    --rdzv-conf="is_host=$is_host,last_call_timeout=${LAST_CALL:-30}" "$(dirname "$0")/program.py" "$@"
