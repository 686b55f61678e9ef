#!/bin/bash
# The same command on a Slurm cluster, over a Ray that begins and ends with the job. Never run by us on a cluster.
#
#   sbatch deploy/slurm.sh recommend-all /shared/runs/RUN --out /shared/recommendations/RUN --no-llm
#   sbatch deploy/slurm.sh train /shared/data/DATASET --run /shared/runs/RUN
#
# Nodes share a file system, and an environment with allrec[cluster] that VENV names. A job that was killed goes on where
# it was: submit it again, with --resume but for recommend-all and prepare (where Slurm itself begins a job again it is
# added here).
#SBATCH --job-name=allrec
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: sbatch deploy/slurm.sh COMMAND ARGUMENTS: recommend-all, train, prepare, compare or baselines of allrec" >&2
    exit 2
fi
# shellcheck source=/dev/null
source "${VENV:?names the environment, such as /shared/venv}/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head --lines=1)
port=$((20000 + SLURM_JOB_ID % 10000))
cpus=$SLURM_CPUS_PER_TASK
export RAY_ADDRESS="$head:$port"

stop() { srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" ray stop || true; }
trap stop EXIT

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port="$port" --num-cpus="$cpus" --block &
# The others look for the head; it is there when a client gets an answer.
until srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" ray status --address="$RAY_ADDRESS" >/dev/null 2>&1; do
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --address="$RAY_ADDRESS" --num-cpus="$cpus" --block &
fi
nodes() { python -c "import ray; ray.init('$RAY_ADDRESS', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"; }
until [ "$(nodes)" -eq "$SLURM_JOB_NUM_NODES" ]; do
    sleep 2
done

if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    case "$1" in train | compare | baselines) set -- "$@" --resume ;; esac
fi
# One CPU stays free: workers that take all of them would starve the tasks beside them.
allrec "$@" --engine ray://auto --workers $((SLURM_JOB_NUM_NODES * cpus - 1))
