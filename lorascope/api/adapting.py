"""Adapters in models: put in, taken out, merged, saved. torch is imported only where a model is touched."""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.api import reading
from lorascope.api.reading import AdapterLike
from lorascope.errors import InputError, needs_train
from lorascope.weights import io
from lorascope.weights.adapter import Adapter

if TYPE_CHECKING:
    from torch import nn

    from lorascope.adapt.inject import Injected
    from lorascope.adapt.merge_report import Merged
    from lorascope.adapt.method import Method
    from lorascope.adapt.several import Adapters

DTYPES = ("auto", "float32", "float16", "bfloat16")  # of a merged model


def needs_torch() -> None:
    """LorascopeError where torch is not installed."""
    if find_spec("torch") is None:
        raise needs_train("torch")


def inject(
    model: "nn.Module",
    method: "str | Method | type[Method]" = "lora",
    *,
    target_modules: str | Collection[str] | None = None,
    modules_to_save: str | Collection[str] | None = None,
    seed: int = 0,
    adapter_name: str | None = None,
    **settings: Any,
) -> "Injected":
    """Freeze a model and give every target layer a fresh, trainable update.

    Args:
        model: the base model; changed in place.
        method: a registered name such as "lora", "dora" or "vera"; or a method.
        target_modules: names, a regular expression, or attention, mlp or all-linear, which is the default.
        modules_to_save: names of modules to train as a whole, such as a classification head.
        seed: every layer draws from its own stream, made from this seed and its name.
        adapter_name: of a model that has an adapter already, the name of this further one, which then is the active
            one.
        settings: the method's own, such as `r` and `lora_alpha`; `lorascope methods NAME` lists them.

    Raises:
        InputError: there is no such method or setting, nothing matches, or the model carries an adapter already.
    """
    needs_torch()
    from lorascope.adapt.inject import inject as put

    if target_modules is not None:
        settings["target_modules"] = target_modules
    return put(model, method, modules_to_save=modules_to_save, seed=seed, adapter_name=adapter_name, **settings)


def adapters(model: "nn.Module") -> "Adapters":
    """What `inject` and `load` put into this model, by name: `adapt.several.Adapters`. InputError where it has none."""
    needs_torch()
    from lorascope.adapt.several import Adapters

    return Adapters(model)


def load(model: "nn.Module", source: AdapterLike, *, config: Any = None, adapter_name: str | None = None) -> "Injected":
    """Put a trained adapter into its base model, to train it further, run it or merge it.

    Args:
        model: the base model; changed in place.
        source, config: as for `read`.
        adapter_name: of a model that has adapters already, the name of this further one; it then is the active one.

    Raises:
        InputError: no method here trains such updates (`merge` takes any), or the adapter does not fit the model.
    """
    needs_torch()
    from lorascope.adapt.load import load as put

    return put(model, reading.read(source, config=config), adapter_name)


def save(source: AdapterLike, folder: str | Path, *, format: str | None = None, tokenizer: Any = None) -> list[Path]:
    """Write an adapter into a folder, as PEFT would where PEFT can hold it; the files written.

    Args:
        source: as for `read`; or the result of `resize`.
        format: a registered format that is written, "peft" or "lorascope".
        tokenizer: of an injected model, which also gets label names and a card with the findings, its tokenizer.

    Raises:
        InputError: the format cannot hold this adapter.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    of_method = getattr(getattr(source, "method", None), "format", None)
    if of_method and format in (None, of_method):
        from lorascope.analyses.analyze import findings_of

        return source.save_pretrained(folder, tokenizer, findings_of(reading.read(source)))  # type: ignore[union-attr,operator]
    chosen = format or of_method or "peft"
    adapter = getattr(source, "resized", None)
    return io.write(adapter if isinstance(adapter, Adapter) else reading.read(source), folder, chosen)


def merge(
    base: "str | Path | nn.Module",
    source: AdapterLike,
    *,
    output: str | Path | None = None,
    dtype: str = "auto",
    adapter_name: str | None = None,
) -> "Merged":
    """Put an adapter's ΔW into its base model's weights for good. `lorascope merge`.

    Args:
        base: a folder or name; or a model, changed in place.
        source, adapter_name: as for `read`; of a path, its card says which head the model has.
        output: a new folder for the merged model.
        dtype: of a base that is opened here, what it is stored in: float32, float16, bfloat16, or auto (its own).

    Raises:
        InputError: the adapter is more than a change of weights, belongs to another base, or something would be lost.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    needs_torch()
    from lorascope.adapt import merge as merging
    from lorascope.adapt.merge_report import Merged
    from lorascope.models import adapter_base

    is_path = isinstance(source, str | Path)
    folder = Path(source) if is_path else Path()  # type: ignore[arg-type]  # as was asked
    if isinstance(base, str | Path):
        checkpoint = adapter_base.checkpoint_of(str(base))
        adapter = reading.read(source, base=checkpoint, adapter_name=adapter_name)
        merging.refuse(adapter)
        model, tokenizer = adapter_base.load_base(adapter, folder, str(base), _torch_dtype(dtype), checkpoint)
    elif dtype != "auto":
        raise InputError("dtype is of a base that is opened here", found=dtype, hint="pass base.to(dtype)")
    else:
        adapter, model, tokenizer, checkpoint = reading.read(source, adapter_name=adapter_name), base, None, None
    seeded = adapter_base.seeded(folder) if is_path else ()
    report = merging.merge(model, adapter, seeded, checkpoint)
    if output is not None:
        facts = {"adapter": adapter.source.path, "base": str(base) if isinstance(base, str | Path) else ""}
        merging.save(model, tokenizer, Path(output), report, facts)
    return Merged(model, tokenizer, report)


def _torch_dtype(name: str) -> Any:
    """torch's dtype of that name; "auto" stays. InputError where models are not stored in it."""
    import torch

    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not supported", expected=", ".join(DTYPES))
    return name if name == "auto" else getattr(torch, name)
