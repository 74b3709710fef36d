"""Process-wide settings. Every entry point imports this module before torch, transformers or faiss."""

import logging
import os
import sys
import warnings
from pathlib import Path

from omegaconf import OmegaConf

# Fast tokenizers spawn threads; a process that forks loader workers afterwards would warn or hang. The store builder,
# which never forks, turns them on for itself.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing that runs by default needs the network; a hub model that is not cached downloads, unless HF_HUB_OFFLINE=1.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # hundreds of them in a log file

# oneDNN keeps a kernel for each size of matrix it has met, 1,024 of them by default. Prompts of several passages all
# differ in length: their kernels would take a third more memory, and being kept they save 5 % of the time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

PROJECT_ROOT = Path(__file__).resolve().parents[2]
CONFIG_DIR = PROJECT_ROOT / "conf"

OmegaConf.register_new_resolver("project_root", lambda: str(PROJECT_ROOT), replace=True)

# Kernels compiled by torch survive a reboot, so that only the very first run pays for them.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(PROJECT_ROOT / "data" / "inductor"))

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which of its builds it tried
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*srun.* command is available.*")

if sys.platform == "darwin":  # libomp of faiss and of torch crash each other there with more than one thread
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def say(text: str) -> None:
    """Tell the person at the terminal what happens, at once even where output is piped."""
    print(text, flush=True)


def has_fast_bfloat16(device: str = "cpu") -> bool:
    """Whether bf16 matrix products are native there: AMX or AVX512-BF16 on a CPU, compute capability 8 on a GPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def progress(iterable=None, **options):
    """A tqdm bar with a rate; where no terminal is attached, a line every 15 s instead of a flood."""
    from tqdm import tqdm

    interactive = sys.stderr.isatty()
    return tqdm(iterable, mininterval=0.2 if interactive else 15, dynamic_ncols=interactive, **options)
