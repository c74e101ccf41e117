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
here=$(cd "$(dirname "$0")" && pwd)
command="env SWARMSTEP_SECRET_FILE=$secret PYTHON=${PYTHON:-python}"
command+=" $(printf '%q ' "$here/torchrun.sh" "${hosts[0]}" "1:${#hosts[@]}" "$@")"

agents=()
for host in "${hosts[@]}"; do
    # shellcheck disable=SC2086  # options are words
    ssh -tt ${SSH_OPTIONS:-} "$host" "$command" </dev/null & # -tt: what runs there ends with the connection
    agents+=($!)
done
trap 'kill "${agents[@]}"' INT TERM
failed=0
for agent in "${agents[@]}"; do
    wait "$agent" || failed=1
done
exit $failed
