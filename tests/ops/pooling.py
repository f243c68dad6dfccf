"""Windows that the tests of max and of average pooling share."""
from tests.ops.table import Case, graph_of

# name, shape, kernel, stride, pads, then what differs from the defaults
WINDOWS = []


def window(name, shape, kernel, stride, pads=(0, 0, 0, 0), batch=2, **attrs):
    WINDOWS.append((name, shape, kernel, stride, pads, batch, attrs))


window("tiles", (3, 6, 8), (2, 2), (2, 2))
window("left-over", (5, 7, 9), (2, 3), (2, 3), batch=3)
window("overlapping", (17, 6, 7), (3, 3), (1, 2))
window("overlapping-padded", (3, 7, 5), (3, 3), (2, 2), (1, 1, 1, 1))
window("one-corner-padded", (33, 4, 5), (3, 2), (2, 1), (2, 0, 0, 1), batch=1)
window("uneven", (1, 6, 5), (4, 2), (1, 3), (0, 1, 3, 0))
window("gaps", (5, 8, 9), (2, 1), (3, 4))
window("gaps-padded", (3, 7, 8), (2, 2), (3, 5), (1, 1, 0, 1))
window("whole-image", (17, 3, 4), (3, 4), (1, 1))
window("one-pixel", (5, 1, 1), (1, 1), (1, 1), batch=3)
window("one-pixel-padded", (3, 1, 1), (3, 3), (2, 2), (1, 1, 1, 1))
window("wide-window", (3, 4, 20), (2, 17), (1, 2), (1, 8, 0, 9))
window("ceil", (3, 6, 8), (3, 3), (2, 2), ceil_mode=True)
window("ceil-padded", (5, 6, 7), (3, 2), (2, 3), (1, 1, 1, 0), ceil_mode=True)
window("ceil-that-changes-nothing", (3, 5, 7), (3, 3), (2, 2), ceil_mode=True)
# the last window would begin in the padding: PyTorch and onnxruntime leave it out
window("ceil-behind-the-image", (2, 4, 4), (2, 2), (3, 3), (1, 1, 1, 1), ceil_mode=True)
window("same-upper", (3, 5, 6), (3, 2), (2, 1), "same_upper")
window("same-upper-gaps", (3, 5, 6), (1, 2), (2, 3), "same_upper")


def case_of(op, name, shape, kernel, stride, pads=(0, 0, 0, 0), batch=2, skip=(), **attrs):
    """A case of a network that is one pooling node."""
    attrs = {"ceil_mode": False, **attrs}
    return Case(name, lambda: graph_of(op, shape, kernel=kernel, stride=stride, pads=pads, **attrs), batch, skip=skip)


def cases(op, tag="", **more):
    """A case for each of the windows."""
    return [case_of(op, name + tag, shape, kernel, stride, pads, batch, **{**attrs, **more})
            for name, shape, kernel, stride, pads, batch, attrs in WINDOWS]
