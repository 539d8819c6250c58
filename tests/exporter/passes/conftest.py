"""Hand-made graphs: build one from a few nodes, run it in onnxruntime."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def make():
    def model(nodes, shapes, outputs, **constants):
        """Nodes as (op, inputs, outputs, attributes); shapes of the float inputs; names of outputs; constants."""
        made = [onnx.helper.make_node(op, ins, outs, f"{op}_{outs[0]}", **kw) for op, ins, outs, kw in nodes]
        graph = onnx.helper.make_graph(
            made,
            "g",
            [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()],
            [onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs],
            [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        opsets = [onnx.helper.make_opsetid("", 21)]
        return onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))

    return model


@pytest.fixture
def run():
    def answer(model, **feeds):
        return ort.InferenceSession(model.SerializeToString()).run(None, feeds)

    return answer
