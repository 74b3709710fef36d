"""Language models without training, for tests of what does not depend on it."""

from pathlib import Path

import torch

SCORING = {
    "template": ["{bos}", "{passage}", "\n\n", "{context}"],
    "max_passage_tokens": 16,
    "tokens_per_forward": 4096,
    "dtype": "float32",
    "compile": False,
}


def save_random_model(model, tokenizer, folder: Path) -> str:
    """The folder of the model, its matrices drawn wide: at the usual 0.02 every token is about equally likely."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
