#!/bin/bash
# The program on a list of hosts, started over ssh. From any machine:
#
#   examples/clusters/ssh.sh HOST,HOST,... FOLDER [STEPS]
#
# Every host has this folder at the same place, the secret's file, and FOLDER on a disk that all of them see. The
# first of them must last. Ctrl-C ends all; the same command goes on from the newest checkpoint.
set -u
IFS=, read -r -a hosts <<<"$1"
shift
secret=${SWARMSTEP_SECRET_FILE:-\$HOME/.swarmstep-secret}
agent="env SWARMSTEP_SECRET_FILE=$secret PYTHON=${PYTHON:-python}"
agent+=" $(cd "$(dirname "$0")" && pwd)/torchrun.sh ${hosts[0]} 1:${#hosts[@]} $*"

for host in "${hosts[@]}"; do
    # shellcheck disable=SC2086  # options are words
    ssh -tt ${SSH_OPTIONS:-} "$host" "$agent" </dev/null & # -tt: what runs there ends with the connection
done
trap 'kill $(jobs -p)' INT TERM
failed=0
for job in $(jobs -p); do
    wait "$job" || failed=1
done
exit $failed
