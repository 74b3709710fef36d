"""A folder for onnxruntime: model.onnx from token ids to unit vectors, tokenizer.json, and embed.py, which uses them.

Shape suffixes: V rows of the static encoder's table, B texts, T tokens, D embedding width.
"""

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dream.encoders.hf import HFEncoder
from dream.encoders.pooling import pool
from dream.encoders.static import StaticEncoder
from dream.export import embed
from dream.export.base import Format, Job
from dream.export.check import compare_rankings, compare_vectors
from dream.export.tokens import text_reader, weighted_table
from dream.utils.atomic_io import write_bytes, write_json
from dream.utils.errors import ConfigError

OPSET = 18  # version of the operators: the first in which ReduceSum and ReduceL2 take their axes in the same way
LOWEST_COSINE = 1 - 1e-4
EMBEDDED_BYTES = 1_500_000_000  # a file holds at most 2 GB; more weights are stored next to it
README = """# Encoder for {runtime}

Written by DREAM. `embed.py` embeds texts without torch:

```bash
pip install numpy tokenizers {runtime}
```

```python
from embed import Encoder

encoder = Encoder()  # the folder of embed.py; or Encoder("FOLDER")
queries = encoder.embed(["how do I read a file"], "query")
passages = encoder.embed(["Opens the file and returns its lines."], "passage")
print(queries @ passages.T)  # cosines
```

`embed.json` has the prefix and the maximum number of tokens of each side. The model reads `input_ids` and
`attention_mask` (int64, texts × tokens, padding last) and gives vectors of unit length.
"""


class OnnxFormat(Format):
    """to=onnx"""

    packages: tuple[str, ...] = ("onnx", "onnxruntime", "onnxscript")
    extra = "onnx"
    int8 = True

    def write(self, job: Job, folder: Path) -> None:
        write_model(job, folder / "model.onnx")
        write_reader(job, folder, "onnxruntime")

    def check(self, job: Job, folder: Path) -> dict[str, Any]:
        encoder = embed.Encoder(folder)
        if job.weights == "float32":
            return compare_vectors(job, encoder.embed, LOWEST_COSINE)
        return compare_rankings(job, encoder.embed)


def write_reader(job: Job, folder: Path, runtime: str) -> None:
    """Write tokenizer, settings, embed.py and README.md."""
    reader = text_reader(job.encoder)
    reader.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "embed.json", reader.as_json())
    shutil.copyfile(embed.__file__, folder / "embed.py")
    write_bytes(folder / "README.md", README.format(runtime=runtime).encode())


def write_model(job: Job, file: Path) -> None:
    """Write the graph, with float32 or int8 weights."""
    encoder, int8 = job.encoder, job.weights == "int8"
    if isinstance(encoder, StaticEncoder):
        import onnx

        onnx.save(static_graph(weighted_table(encoder, text_reader(encoder).tokenizer), int8), file)
        return
    if not int8:
        trace(encoder, file)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exact = file.with_name("exact.onnx")
    trace(encoder, exact)
    with _quiet():
        quantize_dynamic(exact, file, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    for part in file.parent.glob("exact.onnx*"):
        part.unlink()


def static_graph(table_VD: Tensor, int8: bool) -> Any:
    """normalise(Σ_t mask · table[t]). With int8, each row of the table has its own scale: max |value| / 127."""
    from onnx import TensorProto, helper, numpy_helper

    width = table_VD.shape[1]
    node = helper.make_node
    if int8:
        scale_V1 = table_VD.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        stored = {"table": (table_VD / scale_V1).round().to(torch.int8), "scale": scale_V1}
        lookup = [node("Gather", ["table", "input_ids"], ["codes"]), node("Gather", ["scale", "input_ids"], ["scales"]),
                  node("Cast", ["codes"], ["numbers"], to=TensorProto.FLOAT),
                  node("Mul", ["numbers", "scales"], ["vectors"])]  # fmt: skip
    else:
        stored, lookup = {"table": table_VD}, [node("Gather", ["table", "input_ids"], ["vectors"])]
    stored |= {"tokens_axis": torch.tensor([1]), "last_axis": torch.tensor([-1]), "smallest": torch.tensor(1e-12)}
    nodes = [*lookup, node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
             node("Unsqueeze", ["mask", "last_axis"], ["mask_of_vectors"]),
             node("Mul", ["vectors", "mask_of_vectors"], ["masked"]),
             node("ReduceSum", ["masked", "tokens_axis"], ["summed"], keepdims=0),
             node("ReduceL2", ["summed", "last_axis"], ["length"], keepdims=1),
             node("Max", ["length", "smallest"], ["divisor"]),
             node("Div", ["summed", "divisor"], ["sentence_embedding"])]  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in embed.INPUTS]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", width])
    weights = [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "static_encoder", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


class _Graph(nn.Module):
    """Token ids to unit vectors."""

    def __init__(self, encoder: HFEncoder) -> None:
        super().__init__()
        self.reader, self.layers, self.pooling = encoder._reader, encoder.layers, encoder.pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden_BTD = self.reader(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        return F.normalize(self.layers(pool(hidden_BTD, attention_mask.bool(), self.pooling)), dim=1)


def trace(encoder: HFEncoder, file: Path) -> None:
    """Write the graph of a transformer, for any number of texts and tokens."""
    mask_BT = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    ids_BT = torch.full_like(mask_BT, encoder.framing.pad_id)
    size = sum(weight.numel() * weight.element_size() for weight in encoder.parameters())
    axes = {0: "batch", 1: "tokens"}
    try:
        with _quiet():
            torch.onnx.export(
                _Graph(encoder).eval(),
                (ids_BT, mask_BT),
                str(file),
                input_names=list(embed.INPUTS),
                output_names=["sentence_embedding"],
                dynamic_shapes=dict.fromkeys(embed.INPUTS, axes),
                dynamo=True,
                external_data=size > EMBEDDED_BYTES,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConfigError("to", "onnx", f"torch cannot write {type(encoder.model).__name__} as ONNX ({reason}); use "
                          "to=sentence_transformers") from error  # fmt: skip


class _quiet(warnings.catch_warnings):
    """Hide the exporters' own reports, which name nothing that a user can change."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *error: Any) -> None:
        logging.disable(logging.NOTSET)
        super().__exit__(*error)
