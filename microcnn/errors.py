"""Every error that bad input can cause. Each message names the thing, its value, what was expected and the remedy."""


class MicroCNNError(Exception):
    """The base of all errors that this library raises for bad input."""


class ModelError(MicroCNNError):
    """A model that is not valid: wrong shapes, names, attributes."""


class UnsupportedError(ModelError):
    """A valid model that this library cannot run; the message lists every offending node."""


class CompileError(MicroCNNError):
    """Arguments of compile that do not fit the model: unknown names, absurd batches, budgets that nothing fits."""


class DataError(MicroCNNError):
    """Data that does not fit the network: shapes, dtypes, label ranges, empty arrays."""


class FileError(MicroCNNError):
    """A file that cannot be read or written, or whose content is not what it should be."""


class CacheError(MicroCNNError):
    """No folder for compiled kernels can be written."""


class TrainingError(MicroCNNError):
    """Training that cannot go on: the loss is no longer finite."""
