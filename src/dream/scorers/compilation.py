"""Whether torch.compile can work on this machine, and how weights are held there."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from dream.utils.errors import require
from dream.utils.runtime import has_fast_bfloat16


def wants_compilation(key: str, choice: str | bool, device: torch.device) -> bool:
    """`auto`: where inductor finds what it needs, a C++ compiler and Python's headers, and the device is its home."""
    require(choice in ("auto", True, False), key, choice, "choose auto, true or false")
    if choice != "auto":
        return bool(choice)
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    has_compiler = any(shutil.which(compiler) for compiler in compilers if compiler)
    has_headers = (Path(sysconfig.get_path("include")) / "Python.h").exists()
    return device.type in ("cpu", "cuda") and has_compiler and has_headers


def weight_dtype(key: str, choice: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where its matrix products are native, else float32."""
    if choice == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device.type) else torch.float32
    dtype = getattr(torch, choice, None)
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    require(floating, key, choice, "choose auto, bfloat16, float16 or float32")
    assert isinstance(dtype, torch.dtype)
    return dtype
