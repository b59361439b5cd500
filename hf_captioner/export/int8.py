"""Weights of exported graphs as 8-bit numbers: a quarter of the size."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

SMALLEST = 20_000  # numbers in a filter bank; smaller ones are a tenth of the file at most


def quantize_products(source: Path, target: Path) -> None:
    """
    Matrix products in 8-bit numbers, with a scale for each output of the weights and one for each input that is found
    as the graph runs (onnxruntime's dynamic quantisation), embeddings stored in 8 bits. For the decoder, whose time is
    that of reading its weights.
    """
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["Gather", "Gemm", "MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def quantize_filters(source: Path, target: Path) -> None:
    """
    Filters of convolutions, and weights of matrix products, are stored in 8-bit numbers with a scale for each output
    channel, and become floating point numbers again when the graph is loaded. For the vision model, in which inputs
    that are rounded, too, would cost more accuracy and, without an instruction for such convolutions, time.

    Depthwise filters and small ones stay as they are: each output channel has few numbers, so that there is little
    to win, and what they get wrong the later layers cannot mend.
    """
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    restored = []
    for node in graph.node:
        name = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
        if name not in weights:
            continue
        values = numpy_helper.to_array(weights[name])
        is_depthwise = node.op_type == "Conv" and values.shape[1] == 1
        if values.dtype != np.float32 or values.size < SMALLEST or is_depthwise:
            continue
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        axis = 0 if node.op_type == "Conv" or options.get("transB") else values.ndim - 1  # of the output channels
        others = tuple(place for place in range(values.ndim) if place != axis)
        scales = np.maximum(np.abs(values).max(axis=others, keepdims=True), np.finfo(np.float32).tiny) / 127
        stored = {"int8": np.rint(values / scales).astype(np.int8), "scale": scales.ravel().astype(np.float32)}
        graph.initializer.remove(weights.pop(name))
        graph.initializer.extend(numpy_helper.from_array(part, f"{name}.{kind}") for kind, part in stored.items())
        restored.append(helper.make_node("DequantizeLinear", [f"{name}.{kind}" for kind in stored], [name], axis=axis))
    nodes = [*restored, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)
