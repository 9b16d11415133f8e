"""Files of ONNX with weights of 8 bits, which are a quarter as large."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

LINEAR = ("MatMul", "Gemm")


def quantize_file(
    file: Path, output: Path | None = None, *, operators: Sequence[str] = LINEAR
) -> None:
    """Quantises a file of ONNX, by ONNX Runtime's dynamic quantisation.

    Weights become int8, with a scale for each output channel, and are multiplied as integers by
    inputs that are rounded to uint8 as they come. Products of two computed tensors, such as
    attention's, stay as they are. Weights use 7 of the 8 bits, since the products of x86 CPUs
    without VNNI overflow otherwise.

    Args:
        file: to read.
        output: to write; by default ``file`` is replaced.
        operators: of ONNX, whose weights are quantised; ``Conv`` is possible as well, and slow in
            ONNX Runtime (``projects/backbone_benchmark/results/quantized.md``).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic, shape_inference

    output = output or file
    external = file.with_name(f"{file.name}.data").exists()
    with TemporaryDirectory(prefix="mvitv2_det_") as folder:
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / output.name
        # Says only what shapes are known; quantize_dynamic warns of files that did not go through.
        shape_inference.quant_pre_process(
            file,
            prepared,
            skip_optimization=True,
            skip_symbolic_shape=True,
            save_as_external_data=external,
        )
        quantize_dynamic(
            prepared,
            written,
            op_types_to_quantize=list(operators),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
        )
        for part in Path(folder).glob(f"{output.name}*"):
            shutil.copyfile(part, output.with_name(part.name))
