"""Similarities of embeddings. Run: pytest tests/encoders/test_cosines.py"""

import pytest
import torch
from torch.nn import functional as F

from dream.encoders.base import cosines


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_does_not_round_them(dtype):
    query_BD, other_AD = (F.normalize(torch.randn(5, 32, dtype=dtype), dim=1) for _ in range(2))
    expected_BA = query_BD @ other_AD.T
    with torch.autocast("cpu", torch.bfloat16):
        sim_BA = cosines(query_BD, other_AD)
    assert sim_BA.dtype == dtype
    assert torch.equal(sim_BA, expected_BA)
