"""A folder for OpenVINO: model.xml and model.bin, converted from the ONNX graph."""

from pathlib import Path

from dream.export.base import Job
from dream.export.onnx import OnnxFormat, write_model, write_reader


class OpenVinoFormat(OnnxFormat):
    """to=openvino"""

    packages = (*OnnxFormat.packages, "openvino")
    extra = "openvino"

    def write(self, job: Job, folder: Path) -> None:
        import openvino

        graph = folder / "model.onnx"
        write_model(job, graph)
        openvino.save_model(openvino.convert_model(str(graph)), str(folder / "model.xml"), compress_to_fp16=False)
        for file in folder.glob("model.onnx*"):
            file.unlink()
        write_reader(job, folder, "openvino")
