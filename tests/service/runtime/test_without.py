"""What is kept from being imported is not, by nobody else's loss."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.runtime.without import without


def said_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_arrays_are_made_without_pandas() -> None:
    code = """
import sys
from service.runtime.without import arrow_without_pandas
arrow_without_pandas()
import numpy, pyarrow, pyarrow.compute
made = pyarrow.array(numpy.arange(3.0), mask=numpy.array([True, False, False]))
pyarrow.compute.is_finite(made).to_numpy(zero_copy_only=False)
print("pandas" in sys.modules)
import pandas
"""
    assert said_by(code) == "False"


def test_the_kernels_are_loaded_without_scipy_which_can_be_imported_afterwards() -> None:
    code = """
import sys
from service.runtime.without import numba_without_scipy
numba_without_scipy()
import service.runtime.forest_kernel, service.formats.csv_numbers
print("scipy" in sys.modules)
import scipy.linalg
"""
    assert said_by(code) == "False"


def test_other_threads_find_what_is_hidden_from_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with without("colorsys"), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ModuleNotFoundError, match="colorsys"):
            __import__("colorsys")
        assert pool.submit(__import__, "colorsys").result().__name__ == "colorsys"
