#!/bin/sh
# The experiments behind the README and docs/evidence.html, each a few commands; what is done is not done again.
#
#     benchmarks/evidence.sh headline|mnist|conditions|cifar10|report ...
#
# Data come from SWARMSTEP_DATA (default: ./data). Cells are kept in runs/evidence. `headline` makes a real slow
# network and needs Linux and root; whatever is timed runs alone, so leave the machine to it.
set -eu
cd "$(dirname "$0")/.."
swarmstep=${SWARMSTEP:-.venv/bin/swarmstep}
out=runs/evidence
export OMP_NUM_THREADS=1

compare() { "$swarmstep" compare "$@"; }

# Time to the target on a real link of 100 Mbit/s, with a network of a million parameters.
headline() {
    compare mnist --model wide --backend netns --link 100mbit --target-accuracy 0.97 --steps 640 --eval-every 16 \
        --tune-steps 320 --lr-grid 0.01,0.03,0.1 --every 64 --out $out/link --title "Time to 97 % on a slow link" \
        --strategies independent,ddp,synchronous,local-sgd,diloco,pso-ps,swarm,swarm+codec=int8+delay=16
}

# The paper's question (PSO-PS against averaging and synchronous training over n), then all methods.
mnist() {
    set -- --steps 1024 --eval-every 128 --lr-grid 0.003,0.01,0.03 --target-accuracy 0.97 --link 100mbit,5ms --out $out/mnist
    compare mnist "$@" --every 1,4,16,64,256 --strategies synchronous,local-sgd,pso-ps,pso-ps+best=historical,swarm
    compare mnist "$@" --every 16,64 --strategies diloco,easgd,slowmo
    compare mnist "$@" --every 16 --seeds 1 --strategies \
        bmuf,papa,noloco,fedpso,gossip-ring,gossip-exponential,median,trimmed-mean,hierarchical+local_size=2,independent
}

conditions() {
    set -- --every 16 --steps 768 --eval-every 256 --tune-steps 256 --lr-grid 0.003,0.01,0.03 --out $out/conditions \
        --strategies swarm,diloco,local-sgd,median
    compare mnist "$@" --shards bad-labels:1,classes:3
    compare mnist "$@" --fault noise:1:0.1,sign:1
    compare mnist "$@" --shards bad-labels:3 --workers 8
}

cifar10() {
    compare cifar10 --model cnn --steps 512 --eval-every 256 --tune-steps 192 --lr-grid 0.01,0.03,0.1 --schedule constant \
        --every 1,16,64 --strategies synchronous,local-sgd,pso-ps --out $out/cifar10
}

# From the cells to what is committed.
report() {
    for name in link mnist conditions cifar10; do
        "$swarmstep" report $out/$name -o benchmarks/results/evidence-$name.json
    done
    "$swarmstep" report benchmarks/results/evidence-*.json --title "swarmstep: the evidence" -o docs/evidence.html
}

for step in "$@"; do "$step"; done
