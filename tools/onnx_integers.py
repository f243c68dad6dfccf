"""Which ONNX operators take tensors of integers, and what becomes of their results.

A tensor's type is known at import, as the model declares it. In the network integers are floating-point numbers that hold
them exactly; a result that could leave its type's range goes through a Cast, which wraps it around.
"""
from __future__ import annotations

# Those that move numbers, or choose among them: the result holds no number that was not there before.
KEEPING = frozenset({
    "ArgMax", "ArgMin", "Clip", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "Identity", "Max",
    "MaxPool", "Min", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Sign", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Where"})
# Those that compute: modulo the type's range. Quotients and powers lose their fraction first. Sums of many are not among
# them: they may be out of what is exact on the way, and back in it at the end.
WRAPPED = frozenset({"Abs", "Add", "Div", "Mod", "Mul", "Neg", "Pow", "Sub"})
# Those that go from one type to another.
TURNING = frozenset({"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear"})
TAKE_INTEGERS = KEEPING | WRAPPED | TURNING
