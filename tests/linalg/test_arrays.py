"""Shapes without jaxtyping, which the other tests run with."""

import runpy
import sys
from pathlib import Path

from lorascope.linalg import arrays


def test_without_jaxtyping_a_shape_is_an_array(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxtyping")
    names = runpy.run_path(str(Path(arrays.__file__)))
    assert names["Float"][int, "m n"] is int
