#!/bin/bash
# Train under Slurm, from the repository's folder, with the environment active:
#     sbatch docs/slurm.sh --coco_path path/to/coco --output_dir output/coco
# Options of sbatch before the script win over those below. Two minutes before the time limit, Slurm
# warns the job, which saves, queues itself again and continues.
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=4 --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue --open-mode=append

mpirun --bind-to none python main.py --resume auto "$@" &
trap 'trap "" USR1; kill -USR1 $!' USR1  # a second signal would end the training at once
wait $!; wait $!; code=$?  # the signal ends the first wait
if [ $code = 138 ]; then scontrol requeue $SLURM_JOB_ID; fi  # 138: stopped by USR1
exit $code
