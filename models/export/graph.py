"""Build ONNX graphs from DETR's layers.

Methods take and return names of values; docstrings give their shapes. All operators are in opset
17.
"""

from contextlib import contextmanager

import numpy as np
from onnx import TensorProto, helper, numpy_helper

EPSILON = 1e-5  # of all normalization layers


class Graph:
    """Collect the nodes and initializers of an ONNX graph.

    weights: the model's, name -> NumPy array. Values are named by scope, such as
    `/transformer/encoder/layers.0/norm1/LayerNormalization`; weights keep their names.
    """

    def __init__(self, weights, architecture):
        self.weights, self.architecture = weights, architecture
        self.nodes, self.initializers, self.counts = [], {}, {}
        self.path = ""

    @contextmanager
    def scope(self, name):
        """Prefix the names of the nodes that are added in the block."""
        outer = self.path
        self.path = f"{outer}/{name}"
        try:
            yield
        finally:
            self.path = outer

    def add(self, operator, *inputs, **attributes):
        """Add a node with one output, and return the output's name."""
        name = f"{self.path}/{operator}"
        count = self.counts[name] = self.counts.get(name, -1) + 1
        name = f"{name}_{count}" if count else name
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def rename(self, value, name):
        """Rename a value in all nodes."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, old in enumerate(names):
                    if old == value:
                        names[i] = name

    def weight(self, name, array=None):
        """Add a weight of the model, or an array derived from weights, and return its name."""
        if name not in self.initializers:
            value = self.weights[name] if array is None else array
            value = np.ascontiguousarray(value, np.float32)
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def constant(self, value):
        """Add a constant, a scalar or short list of int64 or float32, and return its name."""
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        name = str(array.tolist())
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def shape(self, *dims):
        """Concatenate dimensions (ints or int64 [1] tensors) into a shape."""
        parts = [self.constant([s]) if isinstance(s, int) else s for s in dims]
        return self.add("Concat", *parts, axis=0)

    def dim(self, x, axis):
        """Return the size of x along an axis, int64 [1]."""
        return self.add("Shape", x, start=axis, end=axis + 1)

    def reshape(self, x, *dims):
        """Reshape x; 0 keeps a dimension, -1 infers it."""
        if all(isinstance(dim, int) for dim in dims):
            return self.add("Reshape", x, self.constant(dims))
        return self.add("Reshape", x, self.shape(*dims))

    # ---- layers; `name` is the prefix of the weights' names

    def linear(self, x, name):
        """[..., C] -> [..., D]"""
        return self.affine(x, f"{name}.weight", f"{name}.bias")

    def affine(self, x, weight, bias, rows=None):
        """[..., C] -> [..., D]. weight, bias: names; rows: (start, stop) of both, None for all."""
        matrix, vector = self.weights[weight], self.weights[bias]
        if rows:
            matrix, vector = matrix[slice(*rows)], vector[slice(*rows)]
            weight, bias = (f"{name}[{rows[0]}:{rows[1]}]" for name in (weight, bias))
        # Stored transposed, as it is used: [C, D].
        product = self.add("MatMul", x, self.weight(f"{weight}.T", matrix.T))
        return self.add("Add", product, self.weight(bias, vector))

    def layer_norm(self, x, name):
        """[..., C] -> [..., C]"""
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON)

    def conv(self, x, name, weight=None, bias=None, **attributes):
        """[B, C, H, W] -> [B, D, h, w]. weight, bias: arrays in place of the model's."""
        inputs = [x, self.weight(f"{name}.weight", weight)]
        if bias is not None or f"{name}.bias" in self.weights:
            inputs.append(self.weight(f"{name}.bias", bias))
        return self.add("Conv", *inputs, **attributes)

    def group_norm(self, x, name, groups):
        """[B, C, H, W] -> [B, C, H, W]"""
        grouped = self.reshape(x, 0, groups, -1)
        ones = self.weight(f"ones[{groups}]", np.ones(groups))
        zeros = self.weight(f"zeros[{groups}]", np.zeros(groups))
        normed = self.add("InstanceNormalization", grouped, ones, zeros, epsilon=EPSILON)
        normed = self.add("Reshape", normed, self.add("Shape", x))
        scale, bias = (
            self.weight(f"{name}.{end}[:,1,1]", self.weights[f"{name}.{end}"].reshape(-1, 1, 1))
            for end in ("weight", "bias")
        )
        return self.add("Add", self.add("Mul", normed, scale), bias)

    def resize_nearest(self, x, like, axes):
        """Resize x to the size of `like` with PyTorch's nearest interpolation.

        axes: pairs (axis of x, axis of like).
        """
        for axis, axis_of_like in axes:
            x = self.add("Gather", x, self._nearest_index(x, axis, like, axis_of_like), axis=axis)
        return x

    def _nearest_index(self, x, axis, like, axis_of_like):
        """Compute `util.nearest.nearest_index` with the same rounding."""
        old, new = self.dim(x, axis), self.dim(like, axis_of_like)
        ratio = self.add("Div", self._float(old), self._float(new))
        zero, one = self.constant(0), self.constant(1)
        index = self._float(self.add("Range", zero, self.add("Squeeze", new), one))
        source = self.add("Floor", self.add("Mul", index, ratio))
        last = self.add("Sub", old, self.constant([1]))
        return self.add("Min", self.add("Cast", source, to=TensorProto.INT64), last)

    def _float(self, x):
        return self.add("Cast", x, to=TensorProto.FLOAT)

    # ---- model

    def build_model(self, inputs, outputs, opset, metadata):
        """Build the onnx.ModelProto.

        inputs, outputs: name -> (element type, dimensions: integers or symbolic names); metadata:
        dict of strings.
        """
        values = [
            [helper.make_tensor_value_info(name, *spec) for name, spec in values.items()]
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, "DETR", *values, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(
            graph,
            producer_name="DETR-Jittor",
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),  # for older runtimes
        )
        helper.set_model_props(model, metadata)
        return model
