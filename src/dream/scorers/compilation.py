"""Decides whether to use torch.compile on a device, and which type the weights have."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from dream.scorers.int8 import INT8, INT8_WEIGHTS, eight_bit_problem
from dream.utils.atomic_io import fingerprint
from dream.utils.errors import require, require_installed
from dream.utils.runtime import KERNELS, has_fast_bfloat16

LIMITS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # variables that forbid instructions which the processor has


def kernel_cache() -> Path:
    """Folder of the kernels that torch compiles: one for each kind of processor.

    torch does not check this. A kernel compiled for AVX-512 and run with AVX2 gave NaN, and the reverse a crash.
    """
    chosen = torch.backends.cpu.get_cpu_capability()
    features = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    limits = [os.environ.get(name, "") for name in LIMITS]
    return Path(KERNELS) / f"{chosen.lower()}-{fingerprint([chosen, features, limits])}"


# Only the first run on a kind of processor compiles. torch reads the variable when it compiles the first kernel.
if os.environ.get("TORCHINDUCTOR_CACHE_DIR", KERNELS) == KERNELS:  # otherwise the user has chosen a folder
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kernel_cache())


def wants_compilation(key: str, choice: str | bool, device: torch.device) -> bool:
    """Whether to compile. `auto`: on a CPU or GPU, if inductor finds a C++ compiler and Python's headers.

    Args:
        key: config key, for the error.
        choice: `auto`, true or false.
        device: the model's device.

    Raises:
        ConfigError: `choice` has another value.
    """
    require(choice in ("auto", True, False), key, choice, "choose auto, true or false")
    if choice != "auto":
        return bool(choice)
    compilers = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    has_compiler = any(shutil.which(compiler) for compiler in compilers if compiler)
    has_headers = (Path(sysconfig.get_path("include")) / "Python.h").exists()
    return device.type in ("cpu", "cuda") and has_compiler and has_headers


def weight_dtype(key: str, choice: str, device: torch.device) -> torch.dtype:
    """Type of the weights. `auto`: bfloat16 if the device has native bfloat16 matrix products, otherwise float32.

    Args:
        key: config key, for the error.
        choice: `auto`, `int8` (everything but the linear layers is float32), `int8_weights` (everything but the weights
            of the linear layers is as with `auto`), or a floating-point type of torch.
        device: the model's device.

    Raises:
        ConfigError: there is no such type, or no 8-bit products on this device.
    """
    if choice == INT8:
        reason = eight_bit_problem() if device.type == "cpu" else f"is for CPUs, not for {device.type}"
        require(not reason, key, choice, f"{reason}; choose auto")
        return torch.float32
    if choice == INT8_WEIGHTS:
        require_installed(["torchao"], "int8", key, choice)
    if choice in ("auto", INT8_WEIGHTS):
        return torch.bfloat16 if has_fast_bfloat16(device.type) else torch.float32
    dtype = getattr(torch, choice, None)
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    require(floating, key, choice, "choose auto, bfloat16, float16, float32, int8 or int8_weights")
    assert isinstance(dtype, torch.dtype)
    return dtype


@contextmanager
def compiled_layers(model: Any, compiles: bool) -> Iterator[None]:
    """In this context, the model's repeated layers are compiled, if `compiles`.

    They have one class, so one of them is compiled, and all use the result. This takes seconds where the whole model
    takes minutes.
    """
    layers = _repeated_layers(model) if compiles else []
    for layer in layers:
        layer.forward = partial(_compiled(), layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _run_layer(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).forward(layer, *args, **kwargs)


@cache
def _compiled() -> Any:
    """Not made on import: torch.compile imports the compiler, which takes a second."""
    return torch.compile(_run_layer, dynamic=True)


def _repeated_layers(model: Any) -> list[Any]:
    """The longest list of modules of one class."""
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    alike = [layers for layers in lists if len({type(layer) for layer in layers}) == 1]
    return max(alike, key=len, default=[])
