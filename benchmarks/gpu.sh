#!/bin/sh
# What only a GPU can show: one device, two processes on it, 15 minutes at most.
#
#     benchmarks/gpu.sh                     # where there is no CUDA device it says so, and nothing is claimed
#     benchmarks/gpu.sh --device cpu        # the same checks on the CPU, to try the script
#     benchmarks/gpu.sh --only codec        # those with this in their names
#
# PYTHON is the interpreter (default: .venv/bin/python). Other options go to benchmarks/gpu.py.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
exec timeout --signal=INT 900 "${PYTHON:-.venv/bin/python}" benchmarks/gpu.py "$@"
