"""Files of ONNX with weights of 8 bits, run by ONNX Runtime."""

import numpy as np
import pytest

from mvitv2_det.export.quantizing import quantize_file

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
TEXTS = {"classes": '["digit"]'}


@pytest.fixture
def network(tmp_path):
    """A product with 64 × 128 weights of very different columns, and one of two inputs."""
    weights = np.random.default_rng(0).normal(size=(64, 128)) * 10.0 ** np.linspace(-3, 0, 128)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
            onnx.helper.make_node("MatMul", ["x", "x"], ["square"]),
        ],
        "two products",
        [value("x", onnx.TensorProto.FLOAT, (64, 64))],
        [value(name, onnx.TensorProto.FLOAT, (64, None)) for name in ("y", "square")],
        [onnx.numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    options = {"opset_imports": [onnx.helper.make_opsetid("", 17)], "ir_version": 8}
    model = onnx.helper.make_model(graph, **options)
    onnx.helper.set_model_props(model, TEXTS)
    onnx.save(model, tmp_path / "network.onnx")
    return tmp_path / "network.onnx"


def run(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x}), session.get_modelmeta().custom_metadata_map


def test_linear_layers_alone(network, capfd):
    """To a percent of each output channel, which a scale for all of them would not keep."""
    x = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    (expected, expected_square), _ = run(network, x)
    size = network.stat().st_size
    quantize_file(network)
    assert network.stat().st_size < 0.4 * size
    (y, square), texts = run(network, x)
    error = np.abs(y - expected).max(axis=0) / np.abs(expected).max(axis=0)
    assert 1e-4 < error.max() < 0.03
    assert np.array_equal(square, expected_square)
    assert texts.items() >= TEXTS.items()
    assert capfd.readouterr().err == ""
