"""The one door to compiling: a cache folder named after what it holds, and a lock.

numba does not notice when a helper that a cached function calls has changed, and two processes that compile at once can
corrupt its index. So everything that is compiled, from the import of the kernels to the last entry, goes through
`compiling()`, which points numba at a folder whose name is a hash of the kernels' source and of numba's and llvmlite's
versions, and holds an exclusive lock on it.
"""
import atexit
import contextlib
import functools
import hashlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import llvmlite
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import NullCache
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

from ..errors import CacheError

try:
    import fcntl
except ImportError:   # Windows
    fcntl = None

PACKAGE = Path(__file__).resolve().parent.parent
KEEP = 2
# The numba releases whose internals `helper` and `kernel` know.
LEAN = (0, 60) <= numba.version_info.short <= (0, 68)
# What the names of the libraries begin with that numba makes of a parallel loop.
LOOP_PARTS = ("__numba_parfor_gufunc", "<numba.np.ufunc.wrappers.", "parallelgufuncwrapper")
# What compiled code calls to run a parallel loop, and the memory that the threads share (team.py), in which each of them has so
# many words to set up a call.
PARALLEL_FOR, TEAM, SPACE = "microcnn_parallel_for", "microcnn_team", 512

_lock = threading.RLock()
_folder = None
_depth = 0
_lock_file = None


def _after_fork():
    # a thread that was compiling does not exist in the child: nothing may wait for it, and its file lock is the parent's
    global _lock, _depth, _lock_file
    if _lock_file is not None:
        _lock_file.close()
    _lock, _depth, _lock_file = threading.RLock(), 0, None


os.register_at_fork(after_in_child=_after_fork)


def fingerprint():
    """A hash of everything that compiled code depends on."""
    digest = hashlib.sha256()
    for source in sorted((PACKAGE / "kernels").glob("*.py")) + [PACKAGE / "program.py"]:
        digest.update(source.name.encode())
        digest.update(source.read_bytes())
    digest.update(f"{numba.__version__} {llvmlite.__version__} {sys.version_info[:2]}".encode())
    return digest.hexdigest()[:16]


def _roots():
    """Where the cache may live, best first: inside the user's NUMBA_CACHE_DIR, the user's cache."""
    for variable in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        if given := os.environ.get(variable):
            yield Path(given).absolute() / "microcnn"
    with contextlib.suppress(RuntimeError):
        yield Path.home() / ".cache" / "microcnn"


def _writable(folder):
    """Whether files can really be made there: numba would fall back silently to another folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 4096)
            probe.flush()
    except OSError:
        return False
    return True


def folder():
    """The folder of this version's compiled code; chosen when first asked for.

    The first of _roots() that can be written, or that already holds this version's code. What cannot be written
    (a device with a read-only disk) is read through links in a temporary folder, which takes what is still missing.
    Raises CacheError where nothing can be written at all.
    """
    global _folder
    with _lock:
        if _folder is None:
            name = fingerprint()
            for root in _roots():
                if _writable(root / name):
                    _folder = root / name
                    _prune(root, name)
                    break
                if _filled(root / name):
                    _folder = _temporary(name, root / name)
                    break
            else:
                _folder = _temporary(name)
        return _folder


def _filled(folder):
    """Whether there is compiled code there that can be read."""
    with contextlib.suppress(OSError):
        return any(os.access(file, os.R_OK) for file in folder.rglob("*.nbi"))
    return False


def _temporary(name, behind=None):
    """A private folder that goes when this process ends, with links to what lies in the one behind it."""
    try:
        root = Path(tempfile.mkdtemp(prefix="microcnn-"))
        atexit.register(_discard, root, os.getpid())
        (root / name).mkdir()
        for file in behind.rglob("*.nb[ic]") if behind else ():
            link = root / name / file.relative_to(behind)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    except OSError as error:
        raise CacheError("no folder for compiled kernels can be written; set NUMBA_CACHE_DIR to one that can "
                         f"({error})") from error
    return root / name


def _discard(root, owner):
    # not in a forked child: its parent still uses the folder
    if os.getpid() == owner:
        shutil.rmtree(root, ignore_errors=True)


def _prune(root, name):
    """Only the newest folders stay: a device's disk is small."""
    with contextlib.suppress(OSError):
        os.utime(root / name)
        others = sorted((f for f in root.iterdir() if f.is_dir() and f.name != name and len(f.name) == 16),
                        key=lambda f: f.stat().st_mtime, reverse=True)
        for old in others[KEEP - 1:]:
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def compiling(subfolder=""):
    """Within, numba caches in our folder, and no other thread or process compiles into it.

    Raises CacheError where compiled code cannot be stored: on a full disk, say.
    """
    try:
        with _compiling(subfolder) as target:
            yield target
    except OSError as error:
        raise CacheError(f"compiled kernels cannot be stored in {_folder}: {error}; make room there, or set "
                         "NUMBA_CACHE_DIR to another folder") from error


@contextlib.contextmanager
def _compiling(subfolder):
    global _depth, _lock_file
    target = folder() / subfolder if subfolder else folder()
    with _lock:
        target.mkdir(parents=True, exist_ok=True)
        if _depth == 0 and fcntl is not None:
            _lock_file = open(folder() / "lock", "a")
            fcntl.flock(_lock_file, fcntl.LOCK_EX)
        _depth += 1
        previous = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(target)
        try:
            with warnings.catch_warnings():
                # a parallel kernel whose loop LLVM also finds parallel is no concern of the user
                warnings.simplefilter("ignore", numba.core.errors.NumbaPerformanceWarning)
                yield target
        finally:
            numba.config.CACHE_DIR = previous
            _depth -= 1
            if _depth == 0 and _lock_file is not None:
                _lock_file.close()
                _lock_file = None


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


def compiled(make, subfolder=""):
    """make(), compiled or loaded: an entry or an executor. Raises CacheError."""
    # numba's lock: what other Python threads compile meanwhile has to wait, or it would be made in our ways
    with _interrupt_later(), compiling(subfolder) as target, global_compiler_lock, _parts_as_code():
        try:
            made = make()
        except (pickle.UnpicklingError, EOFError):
            # the disk kept only a part of a file, as after a loss of power: all is compiled anew
            for file in folder().rglob("*.nb[ic]"):
                file.unlink(missing_ok=True)
            made = make()
        path = Path(made._cache.cache_path)
        if target not in path.parents:
            raise CacheError(f"numba caches compiled kernels in {path}, not in {target}; set NUMBA_CACHE_DIR to a folder "
                             "that can be written")
        return made


def stored(function, subfolder=""):
    """Whether compiled code of this entry lies in the cache; that it fits this processor is not said."""
    name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}-{function.__code__.co_firstlineno}."
    return any(path.name.startswith(name) for path in (folder() / subfolder).rglob("*.nbi"))


def adopt(root):
    """Take over what a process of this version compiled into a cache of its own, NUMBA_CACHE_DIR=root; its files move.

    Of what is here already nothing is replaced. Raises CacheError where code cannot be stored.
    """
    with compiling() as target:
        source = Path(root).absolute() / "microcnn" / target.name
        for index in sorted(source.rglob("*.nbi")):
            place = target / index.relative_to(source)
            if place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            # the index last: it promises the code
            for file in [*index.parent.glob(f"{index.stem}.*.nbc"), index]:
                # under another name until it is whole: the other cache may lie on another disk
                moving = place.with_name(f"{file.name}.{os.getpid()}.moving")
                shutil.move(file, moving)
                moving.replace(place.with_name(file.name))


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

    It is a helper, too. What an entry calls is part of the entry's machine code, which is what lies in the cache.
    """
    return _lean(dispatcher)


def _lean(dispatcher, counts=False):
    """The dispatcher, whose function stays LLVM code until it is part of an entry."""
    compiler = getattr(dispatcher, "_compiler", None)
    if not LEAN or not hasattr(compiler, "_customize_flags"):
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
    create = codegen.create_library

    def create_library(name, **how):
        library = create(name, **how)
        if LEAN and name.startswith(LOOP_PARTS):
            library.finalize = functools.partial(_leave_as_code, library)
        return library

    build = parallel.build_gufunc_kernel
    codegen.create_library = create_library
    if LEAN:
        parallel.build_gufunc_kernel = _loop_for_team
    try:
        yield
    finally:
        codegen.create_library, parallel.build_gufunc_kernel = create, build


def _loop_for_team(library, context, info, signature, inner_ndim):
    """As numba's build_gufunc_kernel: what a parallel loop calls, which here hands it to our threads (team.py).

    numba's takes Python's lock four times on the way, which other Python threads may hold.
    """
    byte, word = ir.IntType(8).as_pointer(), context.get_value_type(types.intp)
    assert len(signature.args) + inner_ndim + 1 <= SPACE, f"{info.name} takes more arguments than there is room for"
    wrapper = context.codegen().create_library("parallelgufuncwrapper")
    module = wrapper.create_ir_module("parallel.gufunc.wrapper")
    addresses = [byte.as_pointer(), word.as_pointer(), word.as_pointer(), byte]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), addresses), name=f".kernel.{id(info.env)}_{info.name}")
    builder = ir.IRBuilder(function.append_basic_block(""))
    part = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), addresses), info.name)
    wrapper.add_linking_library(info.library)
    threads = builder.call(cgutils.get_or_insert_function(module, ir.FunctionType(word, []), "get_num_threads"), [])
    run = cgutils.get_or_insert_function(module, ir.FunctionType(ir.VoidType(), [word] * 8), PARALLEL_FOR)
    builder.call(run, [builder.ptrtoint(value, word) for value in (part, *function.args)]
                 + [word(inner_ndim), word(len(signature.args)), threads])
    builder.ret_void()
    wrapper.add_ir_module(module)
    wrapper.add_linking_library(library)
    return parallel._wrapper_info(library=wrapper, name=function.name, env=info.env)


def _nothing():
    pass


def _nothing_for(module):
    pass
