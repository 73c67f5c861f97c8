"""The public functions, `import lorascope as ls`: the command line and notebooks go through them.

Whatever takes an adapter takes a path (file, folder, index), a `PeftModel` or a transformers model with an adapter, a
state dict (with `config=`), an injected model, or an `Adapter` that was read before. Whatever takes a base model takes
a folder, a file, a packaged or cached hub name, or an `nn.Module`. torch is imported only where a model is touched.
"""

from lorascope.api.adapting import adapters, inject, load, merge, save
from lorascope.api.analysing import analyze, compare, delta, intruders, resize
from lorascope.api.evaluating import activations, dimension, trajectory
from lorascope.api.reading import AdapterLike, ModelLike, open_model, read

__all__ = [
    "AdapterLike", "ModelLike", "activations", "adapters", "analyze", "compare", "delta", "dimension", "inject",
    "intruders", "load", "merge", "open_model", "read", "resize", "save", "trajectory",
]  # fmt: skip
