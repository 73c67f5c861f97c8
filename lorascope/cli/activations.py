"""`lorascope activations`: what ΔW does on real inputs, and how far hidden states move."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._outputs import check, to_file, write_outputs

if TYPE_CHECKING:
    from lorascope.analyses.activations import ActivationsResult, RunInput
    from lorascope.blocks import Page
    from lorascope.training.activations import Tokens
    from lorascope.training.data import Encoded
    from lorascope.training.reopen import Reopened

MAX_SHARE_TOKENS = 8192  # that the shares are measured on: enough for a 5 % quantile to 0.3 % of tokens
SAME_BASE = 1e-3  # relative difference of hidden states that device and batches may make


def activations(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs of one base model and data.")
    ],
    max_samples: Annotated[
        int, typer.Option(min=4, metavar="N", help="Held-out texts to pass through the models.")
    ] = 512,
    samples: Annotated[
        int, typer.Option(min=4, metavar="N", help="Tokens for CKA, drawn as evenly over the texts as it goes.")
    ] = 2048,
    pooled: Annotated[
        bool, typer.Option("--pooled", help="For CKA, a sample is the mean over a text's tokens, not one token.")
    ] = False,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another split than the one held out, such as test.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the tokens.")] = 0,
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        to_file("Write one row per layer of a run, and per pair and layer."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where the models run: auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Pass held-out texts through trained models: what ΔW adds in each layer, and CKA of the hidden states.

    ‖ΔW x‖/‖W x‖ and the cosine of the two, beside what a random ΔW of the same norm would give; debiased CKA between
    the base, LoRA runs and full fine-tuning runs, beside chance. Models are opened one after another. Example:

        lorascope activations runs/lora runs/full --html activations.html
    """
    import sys

    check(runs, html=html, json=json, csv=csv)
    from lorascope.analyses import activations as analysis
    from lorascope.errors import InputError

    labels = _labels(runs)
    texts = tokens = shares = base = None
    inputs, notes = [], []
    for path, label in zip(runs, labels, strict=True):
        opened = _open(path, device, split, max_samples)
        notes += opened.notes
        if texts is None:
            texts = opened.held_out
            tokens, shares = _choose(opened, texts, samples, seed)
        elif opened.held_out.tokens != texts.tokens:
            notes.append(f"{label} was held out on other texts; all runs see those of {labels[0]}")
        states = _base_states(opened, texts, tokens, pooled)
        if base is None:
            base = states
        elif [s.shape for s in states] != [s.shape for s in base] or _differ(states, base):
            raise InputError(f"{path} has another base model than {runs[0]}", hint="compare runs of one base")
        inputs.append(_input(opened, label, texts, tokens, shares, pooled))
        del opened
    assert texts is not None
    assert base is not None
    result = analysis.run(
        inputs,
        base,
        _units(tokens, pooled),
        pooled=pooled,
        tokens=len(shares),
        source=f"{len(texts.tokens):,} {split or 'held-out'} texts of {runs[0]}",
        notes=notes,
        progress=_bar,
    )
    page = _page(result)
    if str(json) != "-":
        from lorascope.report import terminal

        sys.stdout.write(terminal.render(page))
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def _labels(runs: list[Path]) -> list[str]:
    """The folders' last parts, as many of them as tell the runs apart."""
    parts = [path.absolute().parts for path in runs]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in runs]


def _open(path: Path, device: str, split: str | None, max_samples: int) -> "Reopened":
    from lorascope.cli import _runs

    return _runs.opened(path, device=device, split=split, max_samples=max_samples)


def _choose(opened: "Reopened", texts: "Encoded", samples: int, seed: int) -> "tuple[Tokens, Tokens]":
    """The tokens of CKA, and those of the shares."""
    from lorascope.training.activations import choose

    size = opened.config.training.per_device_eval_batch_size
    return choose(texts, samples, size, seed), choose(texts, MAX_SHARE_TOKENS, size, seed)


def _base_states(opened: "Reopened", texts: "Encoded", tokens: "Tokens", pooled: bool) -> list[Any]:
    """Hidden states of the base model, with no ΔW in it."""
    from lorascope.training.activations import hidden_states

    opened.put({})
    states = hidden_states(opened, texts, tokens, pooled=pooled)
    opened.restore()
    return states


def _differ(a: list[Any], b: list[Any]) -> bool:
    import numpy as np

    return any(np.linalg.norm(x - y) > SAME_BASE * np.linalg.norm(y) for x, y in zip(a, b, strict=True))


def _input(
    opened: "Reopened", label: str, texts: "Encoded", tokens: "Tokens", shares: "Tokens", pooled: bool
) -> "RunInput":
    """What the analysis takes of one run."""
    import numpy as np

    from lorascope.analyses.activations import ModuleInput, RunInput
    from lorascope.training.activations import hidden_states, responses
    from lorascope.weights.adapter import Skipped

    seen = responses(opened, texts, shares)
    modules = []
    for name, values in seen.by_module.items():
        change = opened.delta(name)
        norm = change.frobenius_norm()
        weight = float(np.linalg.norm(opened.base_weight(name)))
        short, uses = name.removesuffix(".weight"), seen.uses[name]
        modules.append(ModuleInput(short, values, uses, tuple(change.shape), norm, weight))
    left_out = tuple(Skipped(name, reason) for name, reason in seen.left_out.items())
    states = hidden_states(opened, texts, tokens, pooled=pooled)
    method = f"{opened.config.method.name}, {len(opened.updates)} updates"
    return RunInput(label, method, tuple(modules), left_out, tuple(states))


def _units(tokens: "Tokens", pooled: bool) -> Any:
    """(n,) the text of each sample of CKA."""
    import numpy as np

    return np.concatenate([np.asarray(batch) for batch in tokens.batches]) if pooled else tokens.texts


def _bar(layers: list) -> Iterable:
    """A progress bar on stderr, where somebody is looking and there is something to wait for."""
    import sys

    if not sys.stderr.isatty():
        return iter(layers)
    from tqdm import tqdm

    return tqdm(layers, desc="CKA", unit=" layers", leave=False, delay=0.5)


def _page(result: "ActivationsResult") -> "Page":
    import platform
    import shlex
    import sys

    import numpy
    import torch

    import lorascope
    from lorascope.blocks import Page

    title = " and ".join(result.runs) if len(result.runs) <= 2 else f"{len(result.runs)} runs"
    summary = f"{len(result.modules)} updated layers, {result.layers} hidden states, {result.texts:,} texts"
    made_by = (
        ("command", shlex.join(["lorascope", *sys.argv[1:]])),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
        ("torch", torch.__version__),
    )
    return Page(title, result.blocks(), "lorascope activations", summary, made_by)
