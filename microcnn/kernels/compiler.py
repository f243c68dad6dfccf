"""The one door to compiling: from the functions of this folder to machine code.

numba does not notice when a helper that a cached function calls has changed, and two processes that compile at once can corrupt
its index. So numba only makes LLVM code here: an entry with everything that it calls is optimised as one module and becomes a
shared library of its own (linker.py), which store.py keeps and entries.py loads. Where numba's internals are not what we know
it compiles, keeps and loads entries in its own way, and its own threads run their loops.
"""
import contextlib
import functools
import platform
import signal
import sys
import threading
import warnings

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import NullCache
from numba.core.compiler_lock import global_compiler_lock
from numba.np import numpy_support
from numba.np.ufunc import parallel

from .. import store, threads
from ..errors import CacheError
from ..linker import shared_library
from .loops import LOOP_PARTS, loop_for_team, numbas_functions

# Whether we make the code: with the numba releases whose internals this module knows, for the systems that linker.py knows.
OWN = (0, 60) <= numba.version_info.short <= (0, 68) and sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
threads.numbas = not OWN

# {name: (function, fields)}, and {name: (function, how many integers it takes)}
ENTRY_FUNCTIONS, FUNCTIONS = {}, {}


def function(words):
    """Decorator: registers `file.function`, which takes so many integers and is called by its address (entries.code)."""
    def register(body):
        FUNCTIONS[f"{body.__module__.rpartition('.')[2]}.{body.__name__}"] = body, words
        return body
    return register


def entries():
    """{name: fields} of all entries."""
    return {name: fields for name, (_, fields) in ENTRY_FUNCTIONS.items()}


@contextlib.contextmanager
def numbas_cache(subfolder=""):
    """Within, numba keeps what it caches in our folder."""
    previous = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(store.folder() / subfolder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = previous


@contextlib.contextmanager
def _interrupt_later():
    """Ctrl-C waits until this kernel is done: LLVM's callbacks into Python would print it and go on without it."""
    previous = signal.getsignal(signal.SIGINT)
    if not callable(previous) or threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = []
    signal.signal(signal.SIGINT, lambda *given: caught.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if caught:
            previous(*caught[0])


def compiled(name, dtype=""):
    """The code of an entry for a dtype, or of a registered function: a shared library's bytes, or, where numba makes it, its
    cfunc. Raises CacheError.
    """
    # numba's lock: what other Python threads compile meanwhile has to wait, or it would be made in our ways
    with _interrupt_later(), global_compiler_lock, warnings.catch_warnings():
        # a parallel kernel whose loop LLVM also finds parallel is no concern of the user
        warnings.simplefilter("ignore", numba.core.errors.NumbaPerformanceWarning)
        if not OWN:
            return _numbas(name, dtype)
        library = linked(name, dtype)
        type(library)._optimize_final_module(library)
        library._final_module.verify()
        return shared_library(_machine(library.codegen).emit_object(library._final_module), ["entry"])


def _signature(name, dtype):
    """A registered function, and the numba types of its arguments."""
    if name not in ENTRY_FUNCTIONS:
        body, words = FUNCTIONS[name]
        return body, (types.int64,) * words
    body, fields = ENTRY_FUNCTIONS[name]
    real = {"float32": types.float32, "float64": types.float64}[dtype]
    row = numpy_support.from_dtype(np.dtype([(field.rstrip("<>=?"), np.int64) for field in fields.split()]))
    return body, (types.CPointer(real), types.CPointer(row), types.int64)


def _numbas(name, dtype):
    body, arguments = _signature(name, dtype)
    with numbas_cache(dtype):
        made = numba.cfunc(types.void(*arguments), cache=True, error_model="numpy")(body)
    if store.folder() not in store.Path(made._cache.cache_path).parents:
        raise CacheError(f"numba caches compiled kernels in {made._cache.cache_path}, not in {store.folder()}; set "
                         "NUMBA_CACHE_DIR to a folder that can be written")
    return made


def linked(name, dtype=""):
    """numba's library with the LLVM function "entry" and all that it calls, not yet optimised."""
    body, arguments = _signature(name, dtype)
    dispatcher = _lean(numba.njit(error_model="numpy")(body))
    with _parts_as_code():
        dispatcher.compile(arguments)
        made, = dispatcher.overloads.values()
        context = dispatcher.targetctx
        library = context.codegen().create_library("entry")
        module = library.create_ir_module("entry")
        kinds = [context.get_value_type(kind) for kind in arguments]
        entry = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), "entry")
        builder = ir.IRBuilder(entry.append_basic_block(""))
        # whether it raised an exception is not asked: no entry can
        callee = context.declare_function(module, made.fndesc)
        context.call_conv.call_function(builder, callee, types.none, arguments, entry.args)
        builder.ret_void()
        library.add_ir_module(module)
        library.add_linking_library(made.library)
        _leave_as_code(library)
    final = library._final_module
    final.link_in(llvmlite.binding.parse_assembly(cgutils.normalize_ir_text(str(numbas_functions()))), preserve=True)
    for value in (*final.functions, *final.global_variables):
        if not value.is_declaration and value.name != "entry":
            value.linkage = "internal"      # what has become part of the entry goes
    return library


@functools.cache
def _machine(codegen):
    """numba's target machine, but for code that may lie anywhere."""
    options = {"opt": numba.config.OPT}
    codegen._customize_tm_options(options)
    options.update(reloc="pic", codemodel="small", jit=False)
    return llvmlite.binding.Target.from_triple(llvmlite.binding.get_process_triple()).create_target_machine(**options)


def helper(function):
    """Decorator: a compiled function that only compiled functions call.

    numba optimises every function on its own, with wrappers to call it from Python, and then again in each of its
    callers. Helpers of helpers would be compiled five times over. Here a helper stays plain LLVM code, and the entry
    that it ends up in is optimised once: a third of the compile time. Where numba's internals are not what we know, this
    is numba.njit, with the same result.
    """
    return _lean(numba.njit(error_model="numpy")(function))


def inlined(function):
    """Decorator: a helper that stands in each place that calls it, so that what is a constant there is one in it."""
    return numba.njit(error_model="numpy", inline="always")(function)


def view_helper(function):
    """Decorator: a helper that makes an array, which numba allows only where it counts who refers to one."""
    return _lean(numba.njit(error_model="numpy")(function), counts=True)


def kernel(dispatcher):
    """Decorator upon numba.njit(parallel=True, cache=True): a function with a parallel branch, which an entry calls.

    It is a helper, too. What an entry calls is part of the entry's machine code, which is what lies in the store.
    """
    return _lean(dispatcher)


def _lean(dispatcher, counts=False):
    """The dispatcher, whose function stays LLVM code until it is part of an entry."""
    compiler = getattr(dispatcher, "_compiler", None)
    if not OWN or not hasattr(compiler, "_customize_flags"):
        return dispatcher

    def lean_flags(flags):
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
        # all arrays are views of the caller's memory: counting who refers to them would be calls in the innermost loops
        flags.nrt = counts
        return flags

    def add_overload(compiled):
        if not compiled.library._finalized:
            _leave_as_code(compiled.library)
        # what callers look the function up by; numba takes the Python wrapper, which is not made
        compiled = compiled._replace(entry_point=object())
        dispatcher.targetctx.insert_user_function(compiled.entry_point, compiled.fndesc, [compiled.library])
        dispatcher.overloads[tuple(compiled.signature.args)] = compiled

    compiler._customize_flags = lean_flags
    dispatcher.add_overload = add_overload
    dispatcher._cache = NullCache()
    return dispatcher


def _leave_as_code(library):
    """Link a library's parts, and neither optimise it nor make machine code of it: it is to be a part of another one."""
    library._optimize_final_module = library._finalize_specific = _nothing
    library._codegen._add_module, add_module = _nothing_for, library._codegen._add_module
    try:
        type(library).finalize(library)
    finally:
        library._codegen._add_module = add_module


@contextlib.contextmanager
def _parts_as_code():
    """Within, the libraries that numba makes of a parallel loop, three of them one in the other, stay LLVM code as well."""
    codegen = numba.core.registry.cpu_target.target_context.codegen()
    create, build, launch = codegen.create_library, parallel.build_gufunc_kernel, parallel._launch_threads

    def create_library(name, **how):
        library = create(name, **how)
        if name.startswith(LOOP_PARTS):
            library.finalize = functools.partial(_leave_as_code, library)
        return library

    codegen.create_library = create_library
    parallel.build_gufunc_kernel, parallel._launch_threads = loop_for_team, _nothing
    try:
        yield
    finally:
        codegen.create_library, parallel.build_gufunc_kernel, parallel._launch_threads = create, build, launch


def _nothing():
    pass


def _nothing_for(module):
    pass
