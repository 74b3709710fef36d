"""Names of the files and folders in a run's folder."""

from pathlib import Path

CONFIG = "config.yaml"  # the resolved config, with a checksum
STORES = "stores"  # subfolder of the data folder, see conf/data
CHECKPOINTS = Path("checkpoints")
LAST = CHECKPOINTS / "last.ckpt"
CHECKPOINT_PATTERNS = ("checkpoints/*.ckpt", "hpc_ckpt_*.ckpt")  # Lightning writes the second kind for SLURM
ENCODER = "encoder"  # the trained encoder
UNTRAINED_ENCODER = "untrained_encoder"  # the encoder before training, for dream-evaluate
BELONGS_TO = "belongs_to.json"  # in the encoder's folder: hashes of weights and store, weight of the hybrid
UNTRAINED_SCORES = "untrained.json"  # scores of the untrained encoder, for a resumed run
INDEX = "index"  # snapshots of the index
SUMMARY = "summary.json"
SLURM_JOB = "slurm_job"  # id of the SLURM job that started the run
LOG = "train.log"


def run_of(checkpoint: Path) -> Path:
    """Folder of the run that a checkpoint belongs to."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS.name else checkpoint.parent


def is_in_run(checkpoint: Path, run: Path) -> bool:
    """Whether a checkpoint is in the folder of this run. If not, another run wrote it, and this run starts from it."""
    return run.resolve() in checkpoint.resolve().parents
