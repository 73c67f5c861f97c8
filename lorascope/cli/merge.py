"""`lorascope merge`: add an adapter's updates to its base model."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorascope.cli._options import AdapterName, NamedBase
from lorascope.cli._outputs import to_file

if TYPE_CHECKING:
    from lorascope.adapt.merge import Merge
    from lorascope.adapt.requantising import Requantised


def merge(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter (file or folder), or a run.")],
    output: Annotated[Path, to_file("New folder for the merged model.", "DIR")],
    base: NamedBase = None,
    dtype: Annotated[
        str, typer.Option(help="Storage dtype: float32, float16, bfloat16, or auto (the base checkpoint's).")
    ] = "auto",
    adapter_name: AdapterName = None,
) -> None:
    """Write the base model with an adapter merged into its weights, as transformers saves models.

    Sums are formed in float32 and rounded once to the storage dtype; the output says how much of the update that
    rounding took away. DIR/merge.json lists it for every weight, with what else was replaced and what was skipped.
    Whatever cannot be merged without losing something is refused, and then nothing is written. Example:

        lorascope merge quickstart/adapter --base minilm --output merged
    """
    from lorascope.destinations import check_new_folder
    from lorascope.errors import InputError
    from lorascope.weights import io

    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise InputError(f"--dtype {dtype!r} is not supported", expected="auto, float32, float16 or bfloat16")
    check_new_folder(output)
    io.check_exists(adapter)
    adapter, adapter_name = io.one_of(adapter, adapter_name)

    from transformers.utils import logging

    from lorascope import api
    from lorascope.adapt.merge import dtype_of
    from lorascope.models.adapter_base import base_named
    from lorascope.report import terminal

    logging.disable_progress_bar()  # of its shards, which would be drawn into logs as well
    named = base or base_named(adapter)
    merged = api.merge(named, adapter, output=output, dtype=dtype, adapter_name=adapter_name)
    for line in summary(merged.report, str(dtype_of(merged.model))).splitlines():
        print("\n".join(terminal.screen_of().wrap(line, rest="  ")))
    print(f"merged model: {output}")


def summary(merged: "Merge", dtype: str) -> str:
    """In a few lines: sizes, the merge rounding error, what else was replaced, what was skipped."""
    lines = [*(f"note: {note}" for note in merged.notes), *_weights(merged, dtype)]
    lines += _requantising(merged)
    if merged.biases:
        lines.append(f"biases changed by an update: {len(merged.biases)}")
    if merged.whole:
        lines.append(f"trained and stored whole, put in place: {len(merged.whole)} parameters")
    lines += [f"trained token rows put into {name}: {count}" for name, count in merged.rows.items()]
    if merged.grown:
        lines.append(f"vocabulary grown from {merged.grown[0]} to {merged.grown[1]} tokens, as the adapter has it")
    if merged.untied:
        lines.append(f"no longer tied to another weight: {', '.join(merged.untied)}")
    if merged.skipped:
        reasons = dict.fromkeys(item.reason for item in merged.skipped)
        lines.append(
            f"tensors of the file that are not weight updates: {len(merged.skipped)} ({'; '.join(list(reasons)[:3])})"
        )
    return "\n".join(lines)


def _weights(merged: "Merge", dtype: str) -> list[str]:
    if not merged.weights:
        return [f"no updates, stored as {dtype}"]
    from lorascope.analyses.toolkit import medians, percent

    worst = max(merged.weights, key=lambda one: one.rounding_loss)
    middle = float(medians([one.rounding_loss for one in merged.weights]))
    sizes = sorted(one.relative_size for one in merged.weights)
    return [
        f"merged {len(merged.weights)} updates, ‖ΔW‖/‖W‖ from {sizes[0]:.2g} to {sizes[-1]:.2g}, stored as {dtype}",
        f"merge rounding error ({dtype}): median {percent(middle)} of the update, "
        f"maximum {percent(worst.rounding_loss)} ({worst.name}; "
        f"{percent(worst.unchanged)} of its modified entries unchanged after rounding)",
    ]


def _requantising(merged: "Merge") -> list[str]:
    """Of a quantised base: what was dequantised, and what storing the sum in its codes again would lose."""
    weights = merged.requantised
    if not weights:
        return []
    known = [one for one in weights if one.survives is not None]
    unknown = [one for one in weights if one.survives is None and one.delta_norm]
    what = f"{len(weights)} of the merged weights, which are stored without codes"
    lines = [f"dequantised from {_schemes(weights)}: {what}"]
    if merged.requantising is not None:
        from lorascope.analyses.toolkit import percent

        loss, survives = merged.requantising["loss"], merged.requantising["survives"]
        least = min(known, key=lambda one: one.survives or 0.0)
        lines.append(
            f"quantising them again would leave {percent(survives, 3)} of ΔW, "
            f"least {percent(least.survives or 0.0, 3)} ({least.name}), and add an error of {loss:.3g} times its norm"
        )
        if any(word in _schemes(known) for word in ("GPTQ", "AWQ")):
            lines.append("  by the nearest codes; GPTQ and AWQ choose theirs with calibration data, and lose less")
    if unknown:
        lines.append(
            f"what quantising {len(unknown)} of them again would lose is not computed: "
            f"lorascope does not quantise to {_schemes(unknown)}"
        )
    return lines


def _schemes(weights: "Iterable[Requantised]") -> str:
    return ", ".join(sorted({one.scheme for one in weights}))
