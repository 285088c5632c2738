"""The batch script with which a SLURM cluster makes the shards of a plan."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from tasks.manifest.shard_plan import ShardPlan

SCRIPT = """\
#!/bin/bash
# Makes the {count} shards of the plan {id}. Submit it, and one file a table for when it has ended:
#   job=$(sbatch --parsable {script})
#   sbatch --dependency=afterany:$job --wrap={compact}
# Submit it again for what failed or was cancelled: whatever the store has is not made twice.
#SBATCH --job-name=sjc-{id}
#SBATCH --array=0-{last}
#SBATCH --gpus=1
#SBATCH --time={hours}:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sjc-{id}-%a.log
#SBATCH --signal=B:USR1@120

# With SIGTERM, sjc saves checkpoints and ends. A task whose time is over goes back to the queue;
# one that is preempted is put there by SLURM itself.
stop() {{
    kill -TERM "$run"
    wait "$run"
    [ "$1" = cancelled ] || scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    exit 130
}}
trap 'stop cancelled' TERM
trap 'stop timeout' USR1
{command} --shard "$SLURM_ARRAY_TASK_ID" &
run=$!
wait "$run"
"""


def batch_script(plan: ShardPlan, file: Path, script: Path, store: str) -> str:
    """The script of a plan in `file`, with twice the time that its longest shard should take."""
    shards = plan.shards()
    longest = max(sum(assets.values()) for assets in shards.values())
    place = store if "://" in store else str(Path(store).absolute())
    command = ["sjc", "run", "--plan", str(file.absolute()), "--store", place]
    return SCRIPT.format(
        count=len(shards),
        id=plan.id,
        script=shlex.quote(str(script)),
        last=len(shards) - 1,
        hours=max(1, math.ceil(2 * longest / 3600)),
        command=shlex.join(command),
        compact=shlex.quote(shlex.join(["sjc", "compact", "--store", place])),
    )
