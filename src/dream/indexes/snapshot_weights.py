"""The encoder's weights in a snapshot: a damaged snapshot is rebuilt from them."""

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dream.encoders.base import Encoder
from dream.utils.atomic_io import checksum, flush_to_disk

WEIGHTS = "encoder.safetensors"


def save_weights(encoder: Encoder, file: Path) -> None:
    """Write the weights. Only tensors that share memory are copied, because safetensors refuses them."""
    weights, storages = {}, set()
    for name, tensor in encoder.state_dict().items():
        storage = tensor.untyped_storage().data_ptr()
        weights[name] = tensor.cpu().clone() if storage in storages else tensor.cpu()
        storages.add(storage)
    save_file(weights, file)


def keep_weights(encoder: Encoder, written: Path | None, file: Path) -> str:
    """Write the encoder's weights, or copy them from the file `written`, to disk. Returns their checksum."""
    if written is None:
        save_weights(encoder, file)
    else:
        shutil.copyfile(written, file)
    flush_to_disk(file)
    return checksum(file)


def load_weights(encoder: Encoder, file: Path, fingerprint: str) -> bool:
    """Load weights in place. Returns whether they are undamaged."""
    try:
        encoder.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError):
        return False
    return encoder.fingerprint() == fingerprint
