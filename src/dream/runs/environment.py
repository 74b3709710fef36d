"""What a run was computed with: the facts of summary.json about device and packages."""

import importlib.metadata
import platform
from contextlib import suppress

import torch

VERSIONS_OF = ("torch", "lightning", "transformers", "faiss-cpu", "numpy")


def environment(device: torch.device) -> dict[str, str]:
    """Versions of Python and of the packages, and the kind of device.

    A package may be missing, e.g. if another build of FAISS replaces faiss-cpu.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = {"python": platform.python_version(), "device": kind}
    for package in VERSIONS_OF:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts[f"version/{package}"] = importlib.metadata.version(package)
    return facts
