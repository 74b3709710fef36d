"""Arrays and strings on disk. Run: pytest tests/store/test_ragged.py"""

import pickle

import numpy as np
import torch

from dream.store.ragged import ArrayWriter, Strings, gather_tokens, pad_tokens


def test_pad_tokens_by_hand():
    batch = pad_tokens([np.array([5, 6, 7]), np.array([], dtype=np.int64), np.array([8])], pad_id=9)
    assert batch.ids_BT.tolist() == [[5, 6, 7], [9, 9, 9], [8, 9, 9]]
    assert batch.mask_BT.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert batch.ids_BT.dtype == torch.int64


def test_gather_tokens_is_pad_tokens_of_slices():
    tokens = np.arange(100, 120, dtype=np.uint16)
    starts, ends = np.array([0, 4, 18, 7]), np.array([3, 10, 20, 7])
    gathered = gather_tokens(tokens, starts, ends, longest=4, pad_id=1)
    padded = pad_tokens([tokens[start:end][:4] for start, end in zip(starts, ends, strict=True)], pad_id=1)
    assert torch.equal(gathered.ids_BT, padded.ids_BT)
    assert torch.equal(gathered.mask_BT, padded.mask_BT)


def test_array_writer_appends_rows(tmp_path):
    with ArrayWriter(tmp_path / "rows.bin", "<u2") as writer:
        writer.append(np.array([1, 2], dtype=np.int64))
        writer.append(np.array([], dtype=np.int64))
        writer.append(np.array([65535]))
        assert writer.rows == 3
    assert np.fromfile(tmp_path / "rows.bin", dtype="<u2").tolist() == [1, 2, 65535]


def test_strings_read_one_by_one_and_survive_a_spawned_worker(tmp_path):
    texts = ["", "é😀", "plain", ""]
    encoded = [text.encode() for text in texts]
    (tmp_path / "texts.bin").write_bytes(b"".join(encoded))
    strings = Strings(tmp_path / "texts.bin", np.cumsum([len(text) for text in encoded]))
    assert [strings[row] for row in range(len(strings))] == texts
    assert pickle.loads(pickle.dumps(strings))[1] == "é😀"


def test_only_empty_strings_need_no_file_content(tmp_path):
    (tmp_path / "texts.bin").touch()
    assert Strings(tmp_path / "texts.bin", np.array([0, 0]))[1] == ""
