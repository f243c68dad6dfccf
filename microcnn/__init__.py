"""Run and fine-tune ONNX convolutional networks on small devices, with numba and numpy alone.

    import microcnn as mc
    net = mc.load_onnx("model.onnx").compile(batch=32, train="all", loss="cross_entropy", optimizer=mc.SGD(lr=0.01))

Every public name is looked up when it is first used, so that a bare `import microcnn` costs next to nothing.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where each public name lives: {module: names}. A name written "public=own" is called otherwise at home.
_PUBLIC = {
    "augment": "Augment",
    "build": "GraphBuilder Sequential",
    "checkpoint": "load=load_graph",
    "data": "Dataset",
    "errors": "CacheError CompileError DataError FileError MicroCNNError ModelError TrainingError UnsupportedError",
    "graph": "Graph",
    "losses": "BCEWithLogitsLoss CrossEntropyLoss HuberLoss L1Loss MSELoss SmoothL1Loss",
    "net": "Net",
    "normalize": "Normalization",
    "optim": "SGD Adam AdamW",
    "schedule": "CosineAnnealingLR ExponentialLR MultiStepLR OneCycleLR StepLR",
    "specs": "BatchNorm2d Dropout Flatten Linear Reshape Upsample",
    "specs_activation": ("CELU Clip ELU GELU Hardsigmoid Hardswish LeakyReLU LogSoftmax Mish PReLU ReLU ReLU6 SELU SiLU "
                         "Sigmoid Softmax Softplus Softsign Tanh"),
    "specs_elementwise": "Add Div Maximum Minimum Mul Pow Sub",
    "specs_movement": ("CircularPad2d Concat ConstantPad2d PixelShuffle PixelUnshuffle ReflectionPad2d ReplicationPad2d "
                       "ZeroPad2d"),
    "specs_normalization": "GroupNorm InstanceNorm2d LayerNorm LocalResponseNorm",
    "specs_windows": ("AdaptiveAvgPool2d AdaptiveMaxPool2d AvgPool2d Conv2d ConvTranspose2d GlobalAvgPool2d GlobalMaxPool2d "
                      "MaxPool2d"),
    "threads": "get_num_threads set_num_threads",
    "tools.onnx_export": "save_onnx",
    "tools.onnx_import": "load_onnx",
    "tools.profile_data": "Profile",
    "tools.profiler": "profile",
    "train": "fit",
}
_HOMES = {pair.partition("=")[0]: (module, pair.rpartition("=")[2])
          for module, pairs in _PUBLIC.items() for pair in pairs.split()}

if TYPE_CHECKING:   # the same table for editors and type checkers; a test compares the two
    from .augment import Augment as Augment
    from .build import GraphBuilder as GraphBuilder, Sequential as Sequential
    from .checkpoint import load_graph as load  # noqa: F401
    from .data import Dataset as Dataset
    from .errors import (
        CacheError as CacheError,
        CompileError as CompileError,
        DataError as DataError,
        FileError as FileError,
        MicroCNNError as MicroCNNError,
        ModelError as ModelError,
        TrainingError as TrainingError,
        UnsupportedError as UnsupportedError,
    )
    from .graph import Graph as Graph
    from .losses import (
        BCEWithLogitsLoss as BCEWithLogitsLoss,
        CrossEntropyLoss as CrossEntropyLoss,
        HuberLoss as HuberLoss,
        L1Loss as L1Loss,
        MSELoss as MSELoss,
        SmoothL1Loss as SmoothL1Loss,
    )
    from .net import Net as Net
    from .normalize import Normalization as Normalization
    from .optim import SGD as SGD, Adam as Adam, AdamW as AdamW
    from .schedule import (
        CosineAnnealingLR as CosineAnnealingLR,
        ExponentialLR as ExponentialLR,
        MultiStepLR as MultiStepLR,
        OneCycleLR as OneCycleLR,
        StepLR as StepLR,
    )
    from .specs import (
        BatchNorm2d as BatchNorm2d,
        Dropout as Dropout,
        Flatten as Flatten,
        Linear as Linear,
        Reshape as Reshape,
        Upsample as Upsample,
    )
    from .specs_activation import (
        CELU as CELU,
        ELU as ELU,
        GELU as GELU,
        SELU as SELU,
        Clip as Clip,
        Hardsigmoid as Hardsigmoid,
        Hardswish as Hardswish,
        LeakyReLU as LeakyReLU,
        LogSoftmax as LogSoftmax,
        Mish as Mish,
        PReLU as PReLU,
        ReLU as ReLU,
        ReLU6 as ReLU6,
        Sigmoid as Sigmoid,
        SiLU as SiLU,
        Softmax as Softmax,
        Softplus as Softplus,
        Softsign as Softsign,
        Tanh as Tanh,
    )
    from .specs_elementwise import (
        Add as Add,
        Div as Div,
        Maximum as Maximum,
        Minimum as Minimum,
        Mul as Mul,
        Pow as Pow,
        Sub as Sub,
    )
    from .specs_movement import (
        CircularPad2d as CircularPad2d,
        Concat as Concat,
        ConstantPad2d as ConstantPad2d,
        PixelShuffle as PixelShuffle,
        PixelUnshuffle as PixelUnshuffle,
        ReflectionPad2d as ReflectionPad2d,
        ReplicationPad2d as ReplicationPad2d,
        ZeroPad2d as ZeroPad2d,
    )
    from .specs_normalization import (
        GroupNorm as GroupNorm,
        InstanceNorm2d as InstanceNorm2d,
        LayerNorm as LayerNorm,
        LocalResponseNorm as LocalResponseNorm,
    )
    from .specs_windows import (
        AdaptiveAvgPool2d as AdaptiveAvgPool2d,
        AdaptiveMaxPool2d as AdaptiveMaxPool2d,
        AvgPool2d as AvgPool2d,
        Conv2d as Conv2d,
        ConvTranspose2d as ConvTranspose2d,
        GlobalAvgPool2d as GlobalAvgPool2d,
        GlobalMaxPool2d as GlobalMaxPool2d,
        MaxPool2d as MaxPool2d,
    )
    from .threads import get_num_threads as get_num_threads, set_num_threads as set_num_threads
    from .tools.onnx_export import save_onnx as save_onnx
    from .tools.onnx_import import load_onnx as load_onnx
    from .tools.profile_data import Profile as Profile
    from .tools.profiler import profile as profile
    from .train import fit as fit


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'microcnn' has no attribute {name!r}")
    module, own = _HOMES[name]
    try:
        value = getattr(importlib.import_module(f"{__name__}.{module}"), own)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == __name__:
            raise
        from .errors import MicroCNNError
        raise MicroCNNError(f"microcnn.{name} needs the package {error.name}, which is not installed; "
                            f"install it: python -m pip install {error.name}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__", "__doc__", "__file__", "__name__", "__path__"])
