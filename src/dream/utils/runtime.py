"""Process-wide settings. Every entry point imports this module before NumPy, torch, transformers or faiss."""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf

# Fast tokenizers start threads. A process that forks loader workers afterwards would warn or hang. The store builder
# never forks, so it switches the threads on.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The default run needs no network. A hub model that is not cached is downloaded, unless HF_HUB_OFFLINE=1.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # they would write hundreds of lines to a log file

# oneDNN keeps a compiled kernel for each matrix size, by default up to 1,024 kernels. Prompts of several passages all
# differ in length: their kernels would need a third more memory and save only 5 % of the time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

# Threads that wait for others sleep. By default they spin for a while: if another process uses one of their cores, they
# keep the working threads from running, and training is several times slower (benchmarks/threads.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The threads of NumPy's OpenBLAS spin, whatever the policy: with them, a step of the static encoder takes a quarter
# longer. FAISS's own OpenBLAS takes its threads from OpenMP.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

SECONDS_BETWEEN_LINES = 15  # of a progress bar that is written to a log file

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]
IS_CHECKOUT = (CHECKOUT / "conf" / "train.yaml").is_file()  # otherwise installed from a wheel, which contains conf/
CONFIG_DIR = CHECKOUT / "conf" if IS_CHECKOUT else PACKAGE / "conf"


def project_root() -> Path:
    """The folder of data/ and logs/: the checkout, or the current folder if the package is installed from a wheel."""
    return CHECKOUT if IS_CHECKOUT else Path.cwd()


OmegaConf.register_new_resolver("project_root", lambda: str(project_root()), replace=True)

# torch would otherwise share compiled kernels of all projects. scorers/compilation.py adds the kind of processor.
KERNELS = str(project_root() / "data" / "inductor")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", KERNELS)

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # at INFO, it logs each build that it tries to load
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")  # after a resume
warnings.filterwarnings("ignore", message=".*Experiment logs directory .* is not empty.*")  # its rows are kept
warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
warnings.filterwarnings("ignore", message=".*srun.* command is available.*")

if sys.platform == "darwin":  # with several threads, the OpenMP libraries of faiss and torch crash on macOS
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import what this block imports without the garbage collector: it takes a fifth of the time, and finds nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if not gc.get_freeze_count():  # once: what a later job of a sweep leaves behind must stay collectable
            gc.freeze()  # later, it need not search the imported objects again
    finally:
        if enabled:
            gc.enable()


def has_fast_bfloat16(device: str = "cpu") -> bool:
    """Whether bfloat16 matrix products are native: AMX or AVX512-BF16 on a CPU, compute capability 8 on a GPU."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return native and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # false if ONEDNN_MAX_CPU_ISA forbids it
    return False


def training_precision(device: str) -> Literal["bf16-mixed", "32-true"]:
    """Lightning's name of the fastest precision that is safe to train with."""
    return "bf16-mixed" if has_fast_bfloat16(device) else "32-true"


def progress(iterable=None, **options):
    """A tqdm bar with a rate. If stderr is not a terminal, it writes one line every 15 s. Only rank 0 shows it."""
    from tqdm import tqdm

    from dream.utils.ranks import speaks

    options.setdefault("disable", not speaks())
    interactive = sys.stderr.isatty()
    return tqdm(
        iterable, mininterval=0.2 if interactive else SECONDS_BETWEEN_LINES, dynamic_ncols=interactive, **options
    )
