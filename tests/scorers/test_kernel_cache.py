"""Compiled kernels of one kind of processor are never run on another kind."""

import os
import subprocess
import sys

import pytest
import torch

from dream.scorers.compilation import kernel_cache

SHOW = "import os, dream.scorers.compilation; print(os.environ['TORCHINDUCTOR_CACHE_DIR'])"


def folder(**variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"} | variables
    return subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True,
                          timeout=120).stdout.strip()  # fmt: skip


@pytest.mark.slow
def test_each_kind_of_processor_has_its_own_folder():
    assert folder() == str(kernel_cache())
    assert folder(ONEDNN_MAX_CPU_ISA="AVX2") != str(kernel_cache())
    assert folder(TORCHINDUCTOR_CACHE_DIR="/elsewhere") == "/elsewhere"  # the user's choice


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="no other capability to choose")
def test_the_capability_that_torch_uses_counts():
    assert folder(ATEN_CPU_CAPABILITY="default") != str(kernel_cache())
