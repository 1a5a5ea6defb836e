#!/bin/sh
# Everything that needs a GPU, in one command: the gpu tests, DDP and FSDP1 and FSDP2 over NCCL on all GPUs, the overhead.
# Prints to the terminal and to benchmarks/gpu_checks.txt.   PYTHON=... picks the interpreter.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=$("$PYTHON" -c 'import composer, torch; print(torch.cuda.device_count())') || exit 1
if [ "$GPUS" -eq 0 ]; then
    echo 'There is no CUDA device on this machine: nothing to check.' >&2
    exit 1
fi
status=$(mktemp)
{
    "$PYTHON" -c 'import composer, torch; print(torch.cuda.get_device_name(), "torch", torch.__version__, "composer", composer.__version__)'
    echo "# gpu tests"
    "$PYTHON" -m pytest -q -m gpu tests || echo failed >>"$status"
    echo "# $GPUS GPUs over NCCL"
    "$PYTHON" -m composer.cli.launcher -n "$GPUS" tests/gpu_ranks.py || echo failed >>"$status"
    echo "# overhead"
    "$PYTHON" benchmarks/overhead.py --device cuda --ranks 1 --shapes minilm base --batches 32 --repeats 5 --out benchmarks/overhead_gpu.csv || echo failed >>"$status"
} 2>&1 | tee benchmarks/gpu_checks.txt
if [ -s "$status" ]; then
    rm -f "$status"
    echo 'gpu checks: something failed, see above'
    exit 1
fi
rm -f "$status"
echo 'gpu checks: all passed'
