"""What summary.json says about device and packages. Run: pytest tests/runs/test_environment.py"""

import importlib.metadata

import torch

from dream.runs import environment


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    """A run with another build of FAISS was lost at its end, when its version was looked up."""
    monkeypatch.setattr(environment, "VERSIONS_OF", ("torch", "faiss-of-nobody"))
    facts = environment.environment(torch.device("cpu"))
    assert facts["version/torch"] == importlib.metadata.version("torch")
    assert facts["device"] == "cpu"
    assert not [name for name in facts if "nobody" in name]
