"""Each formula of backpropagation through convolutions and pooling, as plain loops on one sample, against a network.

Z a layer's weighted sum, A what its activation makes of it, K and W kernels, d(.) the gradient of the loss. Images are
(channels, rows, columns), gradients are those of one sample until they are averaged over the batch.
"""
import numpy as np
import pytest

import microcnn as mc

RTOL = 1e-12


def compiled(*layers, shape, batch=1, **options):
    graph = mc.Sequential(list(layers), input_shape=shape, seed=3).graph()
    return graph.compile(batch=batch, dtype="float64", **{"train": "all" if graph.weights else None, **options})


def patches(A, R, S, stride=1):
    """(i, j, A_patch): the kernel slides over A."""
    for i in range((A.shape[1] - R) // stride + 1):
        for j in range((A.shape[2] - S) // stride + 1):
            yield i, j, A[:, i * stride:i * stride + R, j * stride:j * stride + S]


def equal(found, expected):
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max())


def convolution(K, A, B):
    """Z = K * A + B"""
    R, S = K.shape[2:]
    Z = np.zeros((len(K), A.shape[1] - R + 1, A.shape[2] - S + 1))
    for k in range(len(K)):
        for i, j, patch in patches(A, R, S):
            Z[k, i, j] = (K[k] * patch).sum() + B[k]
    return Z


def kernel_gradient(A, dZ, R, S):
    """dW = the sum over all patches of A_patch times dZ_ij, element by element"""
    dW = np.zeros((len(dZ), len(A), R, S))
    for k in range(len(dZ)):
        for i, j, patch in patches(A, R, S):
            dW[k] += patch * dZ[k, i, j]
    return dW


def transposed_convolution(K, dZ):
    """K^F ^* dZ: the flipped kernel slides over dZ with zeros all around, which puts dZ back to where it came from."""
    R, S = K.shape[2:]
    flipped = K[:, :, ::-1, ::-1]
    around = np.pad(dZ, ((0, 0), (R - 1, R - 1), (S - 1, S - 1)))
    back = np.zeros((K.shape[1], dZ.shape[1] + R - 1, dZ.shape[2] + S - 1))
    for c in range(K.shape[1]):
        for i, j, patch in patches(around, R, S):
            back[c, i, j] = (flipped[:, c] * patch).sum()
    return back


def max_unpool(Z, R, S, stride, dZ):
    """dZ at the cached index of each window's maximum, in an empty mask like Z."""
    mask = np.zeros(Z.shape)
    for c in range(len(Z)):
        for i, j, region in patches(Z[c:c + 1], R, S, stride):
            r, s = np.unravel_index(region[0].argmax(), (R, S))
            mask[c, i * stride + r, j * stride + s] += dZ[c, i, j]
    return mask


def average_unpool(shape, R, S, stride, dZ):
    """dZ divided by the region's size and spread over it; overlapping regions add up."""
    mask = np.zeros(shape)
    for c in range(shape[0]):
        for i in range(dZ.shape[1]):
            for j in range(dZ.shape[2]):
                for r in range(R):
                    for s in range(S):
                        mask[c, i * stride + r, j * stride + s] += dZ[c, i, j] / (R * S)
    return mask


@pytest.fixture
def layer():
    """One convolution: (network, kernel, bias)."""
    net = compiled(mc.Conv2d(4, (3, 2)), shape=(3, 6, 5))
    return net, net.parameters()["conv1.weight"], net.parameters()["conv1.bias"]


def test_convolution(layer, rng):
    net, K, B = layer
    A = rng.normal(size=(3, 6, 5))
    equal(net.predict(A[None])[0], convolution(K, A, B))


def test_gradient_of_the_kernel_and_of_the_bias(layer, rng):
    net, _, _ = layer
    A, dZ = rng.normal(size=(3, 6, 5)), rng.normal(size=(4, 4, 4))
    net.forward(A[None])
    net.backward(dZ[None])
    equal(net.gradients()["conv1.weight"], kernel_gradient(A, dZ, 3, 2))
    dB = np.zeros(4)
    for k in range(4):
        for i in range(4):
            for j in range(4):
                dB[k] += dZ[k, i, j]
    equal(net.gradients()["conv1.bias"], dB)


def test_gradient_through_a_convolution_is_a_transposed_one_with_the_flipped_kernel(layer, rng):
    net, K, _ = layer
    net.forward(rng.normal(size=(1, 3, 6, 5)))
    dZ = rng.normal(size=(4, 4, 4))
    equal(net.backward(dZ[None])[0], transposed_convolution(K, dZ))


def test_gradients_are_averaged_over_the_batch(rng):
    beta, lr = 5, 0.5
    net = compiled(mc.Conv2d(4, 3), mc.Flatten(), shape=(2, 3, 3), batch=beta, loss="cross_entropy",
                   optimizer=mc.SGD(lr=lr))
    A, labels = rng.normal(size=(beta, 2, 3, 3)), rng.integers(0, 4, beta)
    W, B = net.parameters()["conv1.weight"], net.parameters()["conv1.bias"]
    dW, dB = np.zeros(W.shape), np.zeros(B.shape)
    for s in range(beta):
        Z = convolution(W, A[s], B)
        dZ = np.exp(Z) / np.exp(Z).sum()
        dZ[labels[s]] -= 1
        dW += kernel_gradient(A[s], dZ, 3, 3)
        dB += dZ.sum((1, 2))
    net.train_step(A, labels)
    equal(W - net.parameters()["conv1.weight"], lr * dW / beta)
    equal(B - net.parameters()["conv1.bias"], lr * dB / beta)


@pytest.mark.parametrize("activation, derivative", [
    (mc.ReLU(), lambda Z: (Z > 0) * 1.0),
    (mc.Sigmoid(), lambda Z: np.exp(-Z) / (1 + np.exp(-Z)) ** 2),
    (mc.Tanh(), lambda Z: 1 - np.tanh(Z) ** 2),
    (mc.Clip(-0.5, 0.5), lambda Z: (np.abs(Z) < 0.5) * 1.0),
], ids=["relu", "sigmoid", "tanh", "clip"])
def test_the_derivative_of_the_activation_multiplies_element_by_element(activation, derivative, rng):
    """dZ^l = (K^(l+1)^F ^* dZ^(l+1)) . act'(Z^l), and through a fully connected layer W^T dZ^(l+1) in its place."""
    net = compiled(mc.Conv2d(3, 2), activation, mc.Conv2d(4, (2, 3)), shape=(2, 5, 6))
    A, dZ2 = rng.normal(size=(2, 5, 6)), rng.normal(size=(4, 3, 3))
    K1, B1, K2 = (net.parameters()[name] for name in ("conv1.weight", "conv1.bias", "conv2.weight"))
    dZ1 = transposed_convolution(K2, dZ2) * derivative(convolution(K1, A, B1))
    net.forward(A[None])
    equal(net.backward(dZ2[None])[0], transposed_convolution(K1, dZ1))
    equal(net.gradients()["conv1.weight"], kernel_gradient(A, dZ1, 2, 2))

    net = compiled(mc.Linear(4), activation, mc.Linear(3), shape=(5,))
    W1, b1, W2 = (net.parameters()[name] for name in ("linear1.weight", "linear1.bias", "linear2.weight"))
    x, dz2 = rng.normal(size=5), rng.normal(size=3)
    dz1 = (W2.T @ dz2) * derivative(W1 @ x + b1)
    net.forward(x[None])
    equal(net.backward(dz2[None])[0], W1.T @ dz1)
    equal(net.gradients()["linear1.weight"], np.outer(dz1, x))


# R, S, stride: side by side, overlapping, with gaps
REGIONS = pytest.mark.parametrize("R, S, stride", [(2, 2, 2), (3, 2, 1), (1, 2, 3)])


@REGIONS
def test_max_unpooling_with_cached_indices(R, S, stride, rng):
    net = compiled(mc.MaxPool2d((R, S), stride=stride), shape=(3, 6, 7))
    Z = rng.normal(size=(3, 6, 7))
    dZ = rng.normal(size=net.forward(Z[None]).shape[1:])
    equal(net.backward(dZ[None])[0], max_unpool(Z, R, S, stride, dZ))


@REGIONS
def test_average_pooling_spreads_evenly_and_overlaps_add_up(R, S, stride, rng):
    net = compiled(mc.AvgPool2d((R, S), stride=stride), shape=(3, 6, 7))
    dZ = rng.normal(size=net.forward(rng.normal(size=(1, 3, 6, 7))).shape[1:])
    equal(net.backward(dZ[None])[0], average_unpool((3, 6, 7), R, S, stride, dZ))


def test_a_value_of_8_over_a_region_of_2_by_2_is_2_in_each_place():
    net = compiled(mc.AvgPool2d(2), shape=(1, 2, 2))
    net.forward(np.ones((1, 1, 2, 2)))
    np.testing.assert_array_equal(net.backward(np.full((1, 1, 1, 1), 8.0)), np.full((1, 1, 2, 2), 2.0))


@REGIONS
@pytest.mark.parametrize("kind", ["max", "average"])
def test_from_a_fully_connected_layer_through_pooling_to_the_convolution_before(kind, R, S, stride, rng):
    """dZ = W^T dZ^(l+1) at the pooling layer, without an activation; unpooled, then times act' of the convolution."""
    pool = {"max": mc.MaxPool2d, "average": mc.AvgPool2d}[kind]((R, S), stride=stride)
    net = compiled(mc.Conv2d(3, 2), mc.ReLU(), pool, mc.Flatten(), mc.Linear(4), shape=(2, 6, 7))
    weights = net.parameters()
    A, dz = rng.normal(size=(2, 6, 7)), rng.normal(size=4)
    Z = convolution(weights["conv1.weight"], A, weights["conv1.bias"])
    pooled = net.shapes["maxpool1.out" if kind == "max" else "avgpool1.out"]
    dpooled = (weights["linear1.weight"].T @ dz).reshape(pooled)
    up = max_unpool(np.maximum(Z, 0), R, S, stride, dpooled) if kind == "max" else \
        average_unpool(Z.shape, R, S, stride, dpooled)
    dZ = up * (Z > 0)
    net.forward(A[None])
    equal(net.backward(dz[None])[0], transposed_convolution(weights["conv1.weight"], dZ))
    equal(net.gradients()["conv1.weight"], kernel_gradient(A, dZ, 2, 2))
    equal(net.gradients()["conv1.bias"], dZ.sum((1, 2)))


@REGIONS
@pytest.mark.parametrize("kind", ["max", "average"])
def test_from_a_convolution_through_pooling(kind, R, S, stride, rng):
    """dZ = K^(l+1)^F ^* dZ^(l+1) at the pooling layer."""
    pool = {"max": mc.MaxPool2d, "average": mc.AvgPool2d}[kind]((R, S), stride=stride)
    net = compiled(pool, mc.Conv2d(4, 2), shape=(3, 7, 8))
    Z = rng.normal(size=(3, 7, 8))
    dZ = rng.normal(size=net.forward(Z[None]).shape[1:])
    dpooled = transposed_convolution(net.parameters()["conv1.weight"], dZ)
    expected = max_unpool(Z, R, S, stride, dpooled) if kind == "max" else average_unpool(Z.shape, R, S, stride, dpooled)
    equal(net.backward(dZ[None])[0], expected)
