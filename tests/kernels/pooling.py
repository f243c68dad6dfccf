"""Windows for the tests of the pooling kernels, and what lies inside them."""
import numpy as np

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}

# H W kernel stride pads (top left bottom right) dilation; OH and OW follow, rounding up where ceil is set
GEOMETRIES = [
    dict(H=8, W=6, kernel=(2, 2), stride=(2, 2)),
    dict(H=7, W=9, kernel=(2, 2), stride=(2, 2)),
    dict(H=7, W=8, kernel=(2, 2), stride=(2, 2), ceil=True),
    dict(H=9, W=10, kernel=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
    dict(H=9, W=10, kernel=(3, 3), stride=(2, 2), pads=(0, 1, 1, 0), ceil=True),
    dict(H=6, W=7, kernel=(3, 2), stride=(1, 1), pads=(1, 0, 0, 1)),
    dict(H=9, W=5, kernel=(1, 4), stride=(3, 2), pads=(0, 2, 0, 1)),
    dict(H=9, W=8, kernel=(2, 2), stride=(3, 4)),
    dict(H=1, W=1, kernel=(3, 3), stride=(3, 3), pads=(1, 1, 1, 1)),
    dict(H=6, W=5, kernel=(6, 5), stride=(1, 1)),
]
DILATED = [
    dict(H=9, W=10, kernel=(3, 3), stride=(1, 2), pads=(2, 1, 2, 1), dilation=(2, 2)),
    dict(H=11, W=9, kernel=(2, 3), stride=(2, 1), pads=(1, 2, 0, 1), dilation=(3, 1)),
]


def extent(size, kernel, stride, before, after, dilation, ceil):
    room = size + before + after - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + before else count


def fields(H, W, kernel, stride, pads=(0, 0, 0, 0), dilation=(1, 1), ceil=False):
    return dict(H=H, W=W, OH=extent(H, kernel[0], stride[0], pads[0], pads[2], dilation[0], ceil),
                OW=extent(W, kernel[1], stride[1], pads[1], pads[3], dilation[1], ceil),
                kernel_h=kernel[0], kernel_w=kernel[1], stride_h=stride[0], stride_w=stride[1],
                pad_top=pads[0], pad_left=pads[1], pad_bottom=pads[2], pad_right=pads[3],
                dilation_h=dilation[0], dilation_w=dilation[1])


def inside(f, oh, ow):
    """(index, ih, iw) of every position of a window that lies inside the image."""
    for r in range(f["kernel_h"]):
        for s in range(f["kernel_w"]):
            ih = oh * f["stride_h"] - f["pad_top"] + r * f.get("dilation_h", 1)
            iw = ow * f["stride_w"] - f["pad_left"] + s * f.get("dilation_w", 1)
            if 0 <= ih < f["H"] and 0 <= iw < f["W"]:
                yield r * f["kernel_w"] + s, ih, iw


def close(actual, expected, dtype):
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
