"""The tables of a store. This file needs no torch, so that processes that only cut documents start fast."""

import numpy as np

ENCODER, SCORER = 0, 1  # the two sides of every token range

PASSAGE = np.dtype([("document", "<i8"), ("characters", "<i8", 2), ("tokens", "<i8", (2, 2))])
WINDOW = np.dtype([("document", "<i8"), ("characters", "<i8", 3), ("tokens", "<i8", (2, 3))])
