"""All formats by their name in `to`."""

from dream.export.base import Format
from dream.export.faiss import FaissFormat
from dream.export.hub import HubFormat
from dream.export.onnx import OnnxFormat
from dream.export.openvino import OpenVinoFormat
from dream.export.parquet import ParquetFormat
from dream.export.sentence_transformers import SentenceTransformersFormat

FORMATS: dict[str, Format] = {
    "sentence_transformers": SentenceTransformersFormat(),
    "onnx": OnnxFormat(),
    "openvino": OpenVinoFormat(),
    "hub": HubFormat(),
    "faiss": FaissFormat(),
    "parquet": ParquetFormat(),
}
