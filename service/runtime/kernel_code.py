"""The machine code of `forest_kernel`: compiled once per machine, stored beside numba's cache, and loaded.

LLVM alone loads it (`llvmlite`, 40 ms of CPU and 6 MB), so a web process runs compiled code without numba. A
template or a worker compiles it (5 to 9 s), never a web process: see docs/adr/0033. A file is named by the
source, the libraries and the processor that it was compiled with, and begins with its own digest, because
LLVM ends the process over damaged code.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import Unavailable
from service import startup, telemetry
from service.runtime import kernel_table, libraries
from service.runtime.kernel_table import NotCompiled

startup.import_llvmlite()
import llvmlite.binding as llvm  # noqa: E402

log = telemetry.logger(__name__)

DIGEST_BYTES = 32
SOURCES = ("forest_kernel.py", "kernel_table.py", "kernel_code.py")
NAMES = ("answer_float32", "answer_float64")

Answer = Callable[[int, Any, int, Any, Any, Any, Any], int]
"""See `forest_kernel.kernel`. It takes array objects, because Python reads an address of data in 1 us."""


class KernelFunction(NamedTuple):
    """One compiled function, in two forms."""

    holding_gil: Answer  # for calls of microseconds: others may take 5 ms to give the GIL back
    releasing_gil: Answer


class Kernel(NamedTuple):
    float32: KernelFunction
    float64: KernelFunction
    engine: llvm.ExecutionEngine  # owns the code


_lock = threading.Lock()
_loaded: Kernel | None = None


def load() -> Kernel:
    """Return the kernel. Raises `NotCompiled`, `Unavailable`."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _link(_read())
        return _loaded


def load_or_compile() -> Kernel:
    """Return the kernel, compiled by this process if necessary, which imports numba and takes seconds."""
    global _loaded
    with contextlib.suppress(NotCompiled):
        return load()
    with _single_compiler():
        with contextlib.suppress(NotCompiled):
            return load()  # another process has compiled it meanwhile
        code = _compile()
        _store(code)
    with _lock:
        if _loaded is None:
            _loaded = _link(code)
        return _loaded


def is_compiled() -> bool:
    return _loaded is not None or code_file().exists()


@cache
def code_file() -> Path:
    """The file of the code for this source, these libraries and this processor."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    versions = libraries.versions_for(["forest"])
    processor = (llvm.get_default_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
    digest.update(repr((versions, processor)).encode())
    folder = os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__"
    return Path(folder) / f"forest_kernel-{digest.hexdigest()[:16]}.o"


def _read() -> bytes:
    """Raises `NotCompiled` without a file, and deletes a damaged one if it can."""
    path = code_file()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotCompiled("the kernel for tables of nodes is not compiled yet") from error
    digest, code = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(code).digest() != digest:
        with contextlib.suppress(OSError):  # gone, or in a folder that is not writable
            path.unlink()
        raise NotCompiled("the compiled kernel for tables of nodes was damaged")
    return code


@contextlib.contextmanager
def _single_compiler() -> Iterator[None]:
    """Wait until no other process compiles for the same file. Without a writable folder, none waits."""
    path = code_file().with_suffix(".lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("w")), fcntl.LOCK_EX)
        yield


def _store(code: bytes) -> None:
    """Write the file, or log that it cannot be written: then each process that may compile does so."""
    path = code_file()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(code).digest() + code)
        temporary.replace(path)
    except OSError as error:
        log.warning("kernel.not_stored", folder=str(path.parent), error=str(error), setting="NUMBA_CACHE_DIR")
        with contextlib.suppress(OSError):
            temporary.unlink()


def _compile() -> bytes:
    from service.runtime import forest_kernel  # imports numba

    return bytes(_target_machine().emit_object(forest_kernel.compile_kernel()))


def _link(code: bytes) -> Kernel:
    for name in kernel_table.LIBRARY_FUNCTIONS:  # LLVM ends the process over one that it does not find
        llvm.add_symbol(name, _library_function(name))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    float32, float64 = (_functions(engine.get_function_address(name)) for name in NAMES)
    return Kernel(float32, float64, engine)


def _library_function(name: str) -> int:
    """Return the address of a function of the C library. Raises `Unavailable`."""
    for library in (None, "libm.so.6"):  # what the process has loaded; glibc's mathematical functions
        with contextlib.suppress(OSError, AttributeError):
            function = getattr(ctypes.CDLL(library), name)
            return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
    raise Unavailable(f"the compiled kernel for tables of nodes needs the C function {name}")


def _functions(address: int) -> KernelFunction:
    objects = (ctypes.py_object,) * 4
    arguments = (ctypes.c_void_p, ctypes.py_object, ctypes.c_int64, *objects)
    holding, releasing = ctypes.PYFUNCTYPE, ctypes.CFUNCTYPE
    return KernelFunction(
        *(prototype(ctypes.c_int64, *arguments)(address) for prototype in (holding, releasing))
    )


def _target_machine() -> llvm.TargetMachine:
    """Describe the processor that runs this process. An engine frees its own: none is shared."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )
