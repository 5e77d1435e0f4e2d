"""Files that other libraries load, from the codes and scales of quantized layers: one format per file.

quantized layers → a folder like the checkpoint's own, its layers packed (`folder`), or one GGUF file
"""

from ptq_eval.packing.awq import AWQFormat
from ptq_eval.packing.base import FileFormat, Shape
from ptq_eval.packing.compressed_tensors import CompressedTensors
from ptq_eval.packing.fake import Fake
from ptq_eval.packing.gguf import GGUFFormat
from ptq_eval.packing.gptq import GPTQFormat

FILE_FORMATS: dict[str, FileFormat] = {
    file_format.name: file_format
    for file_format in (CompressedTensors(), GPTQFormat(), AWQFormat(), GGUFFormat(), Fake())
}
"""Every format by its name."""

__all__ = ["FILE_FORMATS", "FileFormat", "Shape"]
