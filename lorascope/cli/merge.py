"""`lorascope merge`: add an adapter's updates to its base model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorascope.training.merge import MergedWeight


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter: a file or a folder.")],
    base: Annotated[
        str, typer.Option(metavar="MODEL", help="Its base model: a packaged name, a folder or a hub name.")
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the merged model.")],
    dtype: Annotated[
        str, typer.Option(help="Store as float32, float16 or bfloat16; auto keeps the base checkpoint's dtype.")
    ] = "auto",
) -> None:
    """Write the base model with an adapter merged into its weights, as transformers saves models.

    Sums are formed in float32 and rounded once to the storage dtype; the output says how much of the update that
    rounding took away, and DIR/merge.json says it for every weight. Example:

        lorascope merge quickstart/adapter --base minilm --output merged
    """
    from lorascope.errors import InputError, LorascopeError
    from lorascope.weights import io

    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise InputError(f"--dtype {dtype!r} is not offered", expected="auto, float32, float16 or bfloat16")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is there already", hint="name a new folder")
    read = io.read(adapter)

    import torch

    from lorascope.training import merge as merging

    model, tokenizer = merging.load_base(read, adapter, base, "auto" if dtype == "auto" else getattr(torch, dtype))
    merged = merging.merge(model, read)
    try:
        merging.save(model, tokenizer, output, merged, {"adapter": str(adapter), "base": base})
    except OSError as error:
        raise LorascopeError(f"cannot write {output}", found=error.strerror or error) from error
    print(summary(merged, str(merging.dtype_of(model))))
    print(f"merged model: {output}")


def summary(merged: "list[MergedWeight]", dtype: str) -> str:
    """What happened, in two lines: sizes, and what rounding took."""
    worst = max(merged, key=lambda one: one.rounding_loss)
    middle = sorted(one.rounding_loss for one in merged)[len(merged) // 2]
    sizes = sorted(one.relative_size for one in merged)
    return (
        f"merged {len(merged)} updates, ‖ΔW‖/‖W‖ from {sizes[0]:.2g} to {sizes[-1]:.2g}, stored as {dtype}\n"
        f"rounded away by {dtype}: {100 * middle:.2g} % of the update in the median weight, "
        f"{100 * worst.rounding_loss:.2g} % in the worst ({worst.name}; "
        f"{100 * worst.unchanged:.2g} % of its changed entries stay as they were)"
    )
