#!/bin/sh
# The experiments behind the README, docs/results.md and docs/evidence.html, each a few commands; finished cells are not run again.
#
#     benchmarks/evidence.sh untuned | headline | link | text | mnist | conditions | cifar10 | report ...
#
# Data come from SWARMSTEP_DATA (default: ./data). Cells are kept in evidence/. `headline`, `link` and `text` create a real slow
# network and need Linux and root; they measure time, so the machine should be idle otherwise.
set -eu
cd "$(dirname "$0")/.."
swarmstep=$PWD/.venv/bin/swarmstep
export OMP_NUM_THREADS=1 SWARMSTEP_DATA="$(realpath "${SWARMSTEP_DATA:-data}")"

# The methods as they come: hours.
untuned() {
    set -- "$PWD/.venv/bin/python" benchmarks/untuned.py
    "$@" digits --methods swarm,local-sgd,diloco,pso-ps,independent --shards iid,bad-labels:1 --seeds 3
    "$@" digits mnist:mlp text:gpt-small --every 16,64 --seeds 5
    "$@" digits --shards bad-labels:1 --seeds 12
    "$@" mnist:mlp mnist:lenet5 --shards bad-labels:1 --seeds 5
    "$@" text:gpt-small --methods swarm,synchronous,local-sgd,diloco --optimizer muon --seeds 3
    "$@" text:gpt-small --methods synchronous --seeds 3
    "$@" text:gpt-small --shards bad-labels:1 --seeds 3
    "$@" cifar10:cnn mnist:lenet5 --every 16,64 --seeds 3
    "$@" cifar10:cnn --shards classes:3 --lr 0.01 --methods swarm,local-sgd --seeds 1
    "$@" cifar10:cnn --shards bad-labels:1 --seeds 3
    "$@" mnist:lenet5 --every 16,64 --seeds 5
    "$@" digits --workers 2,16,64 --seeds 5
    "$@" mnist:mlp --workers 2,16 --seeds 3
    "$@" mnist:mlp --steps 6000 --seeds 3
    "$@" text:gpt --seeds 1
    "$@" cifar10:cnn --every 16,64 --seeds 5
    "$@" cifar10:cnn --shards bad-labels:1 --seeds 5
    "$@" cifar10:cnn --shards classes:3 --lr 0.01 --methods swarm,local-sgd --seeds 3
}

compare() { "$swarmstep" compare "$@" --json; }

# Time to an accuracy on a real link of 100 Mbit/s, with a network of a million parameters.
link() {
    one_link 3 swarm+codec=int8+delay=8,diloco,swarm,local-sgd
}

# A part of it in less than 20 minutes: DDP, which takes most of the time, with one seed only.
headline() {
    one_link 1 swarm+codec=int8+delay=8,diloco
}

one_link() {
    ddp=$1 methods=$2
    set -- --model wide --schedule cosine --steps 448 --tune-steps 224 --every 64 --lr-grid 0.01,0.03,0.1 \
        --backend netns --link 100mbit --out evidence/link
    compare mnist "$@" --eval-every 32 --strategies "$methods"
    compare mnist "$@" --eval-every 32 --seeds 2 --strategies pso-ps
    compare mnist "$@" --eval-every 448 --lr-grid 0.03 --strategies independent
    # Long runs, which stop at the target: an accuracy that all others reached within their steps.
    compare mnist "$@" --eval-every 32 --target-accuracy 0.98 --seeds 1 --strategies synchronous
    compare mnist "$@" --eval-every 32 --target-accuracy 0.98 --seeds "$ddp" --strategies ddp
}

# Text with Muon on the same link: time to a loss, as a multiple of synchronous training without a network.
text() {
    set -- --model gpt-small --optimizer muon --lr-grid 0.002 --target-loss 1.65 --out evidence/text
    compare text "$@" --eval-every 25 --seeds 5 --strategies synchronous --jobs 1
    set -- "$@" --backend netns --link 100mbit
    compare text "$@" --eval-every 50 --seeds 5 --every 16 --strategies swarm+codec=int8
    compare text "$@" --eval-every 50 --seeds 1 --strategies ddp
    compare text "$@" --eval-every 1500 --seeds 1 --strategies independent
}

# The paper's question (PSO-PS against averaging and synchronous training over n), then all methods.
mnist() {
    set -- --steps 1024 --eval-every 128 --lr-grid 0.003,0.01,0.03 --target-accuracy 0.97 --link 100mbit,5ms \
        --out evidence/mnist
    compare mnist "$@" --every 1,4,16,64,256 --strategies synchronous,local-sgd,pso-ps
    compare mnist "$@" --every 16,64 --strategies swarm,diloco
    compare mnist "$@" --every 16,64 --strategies pso-ps+best=historical,easgd
    compare mnist "$@" --every 16 --seeds 1 --tune-steps 128 --strategies \
slowmo,bmuf,papa,noloco,fedpso,gossip-ring,gossip-exponential,median,trimmed-mean,hierarchical+local_size=2,independent
}

conditions() {
    set -- --every 16 --steps 512 --eval-every 256 --tune-steps 128 --lr-grid 0.003,0.01,0.03 \
        --out evidence/conditions --strategies swarm,diloco,local-sgd
    compare mnist "$@" --shards bad-labels:1,classes:3
    compare mnist "$@" --fault noise:1:0.1,sign:1
    compare mnist "$@" --shards bad-labels:3 --workers 8
}

cifar10() {
    compare cifar10 --model cnn --steps 256 --eval-every 256 --tune-steps 128 --lr-grid 0.01,0.03,0.1 \
        --schedule constant --every 1,16,64 --strategies synchronous,local-sgd,pso-ps --out evidence/cifar10
}

# From the cells to the committed files; an experiment without cells is left as it is.
report() {
    set --
    for name in link text mnist conditions cifar10; do
        if [ -d evidence/$name/cells ]; then
            "$swarmstep" report evidence/$name -o benchmarks/results/evidence-$name.json
        fi
        set -- "$@" benchmarks/results/evidence-$name.json
    done
    "$swarmstep" report "$@" --title "swarmstep: the evidence" -o docs/evidence.html
    .venv/bin/python benchmarks/headline.py
    .venv/bin/python benchmarks/claims.py
}

for step in "$@"; do "$step"; done
