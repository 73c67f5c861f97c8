"""lorascope: train low-rank adapters, and see what they did to the weights.

    import lorascope as ls

    result = ls.analyze("runs/lora/adapter")
    result.findings, result.table(), result.to_html("lora.html")

Importing the package is cheap: the public functions of `lorascope.api` come when they are first used, and nothing here
imports torch, transformers or matplotlib.
"""

import importlib

__version__ = "0.2.0"

_WHERE = {
    "activations": "api", "adapters": "api", "analyze": "api", "compare": "api", "delta": "api", "dimension": "api",
    "inject": "api", "intruders": "api", "load": "api", "merge": "api", "open_model": "api", "read": "api",
    "resize": "api", "save": "api", "trajectory": "api",
    "Adapter": "weights.adapter", "Result": "analyses.base", "Injected": "adapt.inject", "InputError": "errors",
    "LorascopeError": "errors",
}  # fmt: skip

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    """A public name, imported when it is first used (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'lorascope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lorascope.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
