"""Imports that are kept out of a process, and the garbage collector during a start."""

from __future__ import annotations

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import startup


def output_of(code: str) -> str:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return process.stdout.strip()


def test_pyarrow_creates_arrays_without_importing_pandas() -> None:
    code = """
import sys
from service import startup
startup.import_pyarrow()
import numpy, pyarrow, pyarrow.compute
array = pyarrow.array(numpy.arange(3.0), mask=numpy.array([True, False, False]))
pyarrow.compute.is_finite(array).to_numpy(zero_copy_only=False)
print("pandas" in sys.modules)
import pandas
"""
    assert output_of(code) == "False"


def test_the_kernels_are_loaded_without_scipy_which_can_be_imported_afterwards() -> None:
    code = """
import sys
from service import startup
startup.import_numba()
import service.runtime.forest_kernel, service.formats.fast_csv.compiled
print("scipy" in sys.modules)
import scipy.linalg
"""
    assert output_of(code) == "False"


def test_logs_are_configured_without_importing_rich() -> None:
    assert output_of("import sys, service.telemetry; print('rich' in sys.modules); import rich") == "False"


def test_a_hidden_module_can_be_imported_by_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with startup.hidden("colorsys"), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ModuleNotFoundError, match="colorsys"):
            __import__("colorsys")
        assert pool.submit(__import__, "colorsys").result().__name__ == "colorsys"


def test_the_collector_is_enabled_after_the_start_and_its_objects_are_frozen() -> None:
    try:
        startup.pause_collector()
        assert not gc.isenabled()
        startup.resume_collector()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        gc.enable()
