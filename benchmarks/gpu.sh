#!/bin/sh
# Every speed script on one GPU, in under nine minutes; tables to the terminal and to benchmarks/gpu/, beside the CSV files.
# What has not ended in its share is cut, and said.   PYTHON=... picks the interpreter, PEERS=... one with torchdistill, txtai.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
PEERS=${PEERS:-$PYTHON}
OUT=${OUT:-benchmarks/gpu}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$PYTHON" -c 'import composer, sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
    echo 'There is no CUDA device on this machine: nothing to measure.' >&2
    exit 1
}
mkdir -p "$OUT"
status=0
share() { # SECONDS SCRIPT ARGUMENTS...
    seconds=$1 script=$2
    shift 2
    echo "# $script $*"
    timeout "$seconds" "$PYTHON" "benchmarks/$script.py" --device cuda --out "$OUT/$script.csv" "$@" \
        >"$OUT/$script.txt" 2>&1 || {
        status=1
        echo "$script did not end well within $seconds s"
    }
    grep '|' "$OUT/$script.txt" || tail -n 5 "$OUT/$script.txt"
}
share 50 scaling --ranks 1 --repeats 5
share 210 overhead --ranks 1 --shapes minilm base --batches 32 --repeats 5
share 130 throughput --repeats 1 --contenders ours ours-alone plain composer trainer trainer-dynamic
share 90 distillation --repeats 1 --contenders ours-cached ours-filling trainer torchdistill plain-live plain-cached \
    --peers-python "$PEERS"
share 40 startup --repeats 1
exit $status
