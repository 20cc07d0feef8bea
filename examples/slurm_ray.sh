#!/bin/bash
# Tunes the jobs of a file on all GPUs of a SLURM allocation, by a Ray cluster that lives as long as the job:
#
#   sbatch examples/slurm_ray.sh jobs.yaml
#
# The same command again goes on. Never run on a cluster: checked by shellcheck, and with stand-ins for SLURM and
# Ray (tests/test_examples.py). Adapt what follows, and activate your environment where it says so.

#SBATCH --job-name=evotune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --signal=B:INT@900

set -euo pipefail
jobs=${1:?give a file of jobs: sbatch examples/slurm_ray.sh jobs.yaml}

# Activate the same environment as on all nodes here, such as: source /shared/venv/bin/activate

# A journal must lie on a local disk: it is brought here and taken back.
kept=$SLURM_SUBMIT_DIR/journal.db
scratch=$(mktemp -d)
if [ -f "$kept" ]; then
    cp "$kept" "$scratch/journal.db"
fi

# shellcheck disable=SC2329  # it is called by the trap
finish() {
    ray stop >&2 || true
    if [ -f "$scratch/journal.db" ]; then
        cp "$scratch/journal.db" "$kept.new" && mv "$kept.new" "$kept"
    fi
    rm -rf "$scratch"
}
trap finish EXIT

# Ray would let what it measures give way to other programs.
export RAY_worker_niceness=0
# Settings of every job; a job of the file can say otherwise.
export EVOTUNE_RUN_ENGINE=ray EVOTUNE_RUN_RAY_ADDRESS=auto EVOTUNE_RUN_GPUS=all

# This script runs on the first node, which becomes the head. Four of its cores stay with the search.
first=$(hostname)
port=6379
ray start --head --port="$port" --num-cpus="$((SLURM_CPUS_PER_TASK - 4))" --num-gpus="$SLURM_GPUS_ON_NODE" >&2
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes="$((SLURM_NNODES - 1))" --ntasks-per-node=1 --exclude="$first" \
        ray start --address="$first:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" \
        --block >&2 &
fi
for _ in $(seq 60); do
    here=$(python -c 'import ray; ray.init("auto", logging_level="ERROR"); print(len(ray.nodes()))')
    [ "$here" -ge "$SLURM_NNODES" ] && break
    sleep 5
done

# SLURM's signal comes to this shell a quarter of an hour before the end, and what a shell starts in the background
# does not hear Ctrl-C unless it is told to: evotune ends cleanly, and the next job goes on.
tuner=
trap '[ -z "$tuner" ] || kill -INT "$tuner"' INT
env --default-signal=INT evotune batch "$jobs" --journal "$scratch/journal.db" --report "$SLURM_SUBMIT_DIR/pages" &
tuner=$!
code=0
wait "$tuner" || code=$?
while kill -0 "$tuner" 2>/dev/null; do  # the first wait ends with the signal
    code=0
    wait "$tuner" || code=$?
done
exit "$code"
