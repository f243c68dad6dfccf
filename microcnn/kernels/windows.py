"""What pooling kernels ask about windows that slide over an image."""
from .compiler import helper
from .simd import lanes
from .vector import vector_of, vector_write


@helper
def first_inside(start, dilation):
    """The first position of a window beginning at `start` that is not before the image."""
    if start >= 0:
        return 0
    return -start if dilation == 1 else (dilation - 1 - start) // dilation


@helper
def end_inside(start, extent, kernel, dilation):
    """One past the last position of a window beginning at `start` that lies before `extent`."""
    if start + (kernel - 1) * dilation < extent:
        return kernel
    return max(0, (extent - start + dilation - 1) // dilation)


@helper
def interior(W, OW, kernel, dilation, stride, pad):
    """The range of windows along one axis that lie wholly inside."""
    room = W - 1 - (kernel - 1) * dilation + pad
    begin = (pad + stride - 1) // stride
    return begin, max(begin, min(OW, room // stride + 1)) if room >= 0 else begin


@helper
def prepare_row(dx, job, W, C, stride_w, pad_left, covered, OW, tiled, accumulate):
    """Zero what the windows of a row of dx will not write; whether they have to add.

    Windows that lie side by side like tiles write each place once, so that only the rest needs zeros.
    """
    if accumulate:
        return True
    begin = min(W, max(0, OW * stride_w - pad_left)) if tiled and covered else 0
    zero = vector_of(dx, dx.dtype.type(0))
    for i in range((job * W + begin) * C, (job + 1) * W * C, lanes(dx)):
        vector_write(zero, dx, i, (job + 1) * W * C - i)
    return not tiled
