"""The tests, in the same order as the tree."""

# Elementary operations from which on kernels use threads here: small shapes run in one, large ones in as many as there are.
WORK = 200_000
