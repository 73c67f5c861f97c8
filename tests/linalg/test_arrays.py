"""Shapes without jaxtyping, which the other tests run with."""

import runpy
import sys
from pathlib import Path

import numpy as np
import torch

from lorascope.linalg import arrays


def test_without_jaxtyping_a_shape_is_an_array(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxtyping")
    names = runpy.run_path(str(Path(arrays.__file__)))
    assert names["Float"][int, "m n"] is int


def test_on_the_host_as_numpy_in_its_own_dtype():
    array = np.ones(3, np.float32)
    assert arrays.to_numpy(array) is array
    tensor = torch.ones(3, dtype=torch.float16, requires_grad=True)
    assert arrays.to_numpy(tensor).dtype == np.float16
    assert arrays.namespace(array, array) is np
    assert arrays.namespace(tensor).float64 is torch.float64
