"""`lorascope methods`: what can be trained, how large it is on a given model, and what each method's settings are."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lorascope.adapt.describe import Description


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Describe one method in full.")] = None,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Count parameters on this model (packaged name, folder or hub name).")
    ] = "minilm",
    targets: Annotated[
        str,
        typer.Option(metavar="TARGETS", help="attention, mlp, all-linear, or comma-separated layer names."),
    ] = "all-linear",
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """List training methods and their trainable parameters, or describe one.

    Example:

        lorascope methods
        lorascope methods --model smollm2 --targets q_proj,v_proj
        lorascope methods vera

    Counts are by each method's formula with its default settings, on the shapes of the model alone: no weights are
    loaded. The new classification head, which every method trains as well, is not counted.
    """
    import sys

    from lorascope.adapt.describe import describe
    from lorascope.report.terminal import render

    if name is not None:
        about = describe(name)
        sys.stdout.write(_as_json([about], {}) if json else render(_page(about)))
        return
    from lorascope.adapt.method import methods as registered

    about_all = [describe(each) for each in registered.names()]
    counts, total = _counts([each.name for each in about_all], model, targets)
    if json:
        sys.stdout.write(_as_json(about_all, counts, model=model, targets=targets, parameters=total))
    else:
        sys.stdout.write(_listing(about_all, counts, total, model, targets))


def _counts(names: list[str], model: str, targets: str) -> "tuple[dict[str, int | str], int]":
    """What each method would train, or why it cannot; and the model's own number of parameters."""
    from lorascope.adapt.method import methods as registered
    from lorascope.adapt.targets import WORDS, find_sites
    from lorascope.errors import InputError, preview
    from lorascope.models.shapes import model_shapes

    base = model_shapes(model)
    sites = find_sites(base, targets if targets in WORDS else [part.strip() for part in targets.split(",")])
    counts: dict[str, int | str] = {}
    for name in names:
        method = registered.get(name)()
        wrong = [site.name for site in sites if method.uses_targets and site.kind not in method.layer_kinds]
        try:
            counts[name] = f"cannot adapt {preview(wrong, 1)}" if wrong else method.total_parameter_count(base, sites)
        except InputError as error:
            counts[name] = error.what
        except NotImplementedError:
            counts[name] = "has no formula"
    return counts, sum(parameter.numel() for parameter in base.parameters())


def _listing(
    described: "list[Description]", counts: "dict[str, int | str]", total: int, model: str, targets: str
) -> str:
    """By kind of update, the commonest first: name, numbers trained and their share, what it does, paper."""
    from collections import Counter

    from lorascope.report import terminal

    screen = terminal.screen_of()
    opening = (
        f"{len(described)} methods. Trained with default settings on {model} ({total:,} parameters, without a head)"
    )
    lines = [*screen.wrap(f"{opening}, targets {targets}.")]
    kinds = Counter(each.kind for each in described)
    for kind in sorted(kinds, key=lambda kind: (kind == "", -kinds[kind], kind)):
        members = [each for each in described if each.kind == kind]
        title = f"{kind}: {members[0].formula}" if kind else "no update of a weight"
        lines += ["", screen.style(title, "bold")]
        for each in members:
            lines += _entry(each, counts[each.name], total, screen)
    lines += ["", *screen.wrap("One in full, with its settings: lorascope methods NAME")]
    return "\n".join(lines) + "\n"


def _entry(each: "Description", count: "int | str", total: int, screen: Any) -> list[str]:
    from lorascope.report import text

    if isinstance(count, str):
        number, share, why = "–", "", f" Not on this model: {count}."
    else:
        number, share, why = f"{count:,}", text.percent(count / total, 4 if count < total / 100 else 3), ""
    lead = f"  {each.name:<16}{number:>11}{share:>9}  "
    first, *more = screen.wrap(f"{each.what}{why}", lead, " " * len(lead))
    paper = screen.wrap(each.paper, " " * len(lead), " " * len(lead))
    return [first, *more, *(screen.style(line, "dim") for line in paper)]


def _page(about: "Description") -> Any:
    """One method as blocks: facts, settings, the docstring of its file, an example."""
    from lorascope.blocks import Code, Facts, Page

    kind = ((f"kind {about.kind}", about.formula),) if about.kind else (("kind", "no update of a weight"),)
    settings = tuple((each.name, f"{each.type}, default {each.default}. {each.doc}") for each in about.settings)
    body = [
        Facts((("paper", about.paper), *kind, *about.facts)),
        Facts(settings, title="Settings") if settings else Facts((), title="Settings: none"),
        *_paragraphs(about.about),
        Code(f"{about.example}\n", title="Example, for lorascope train"),
    ]
    return Page(about.name, tuple(body), summary=about.what)


def _paragraphs(docstring: str) -> list:
    """Prose to be wrapped; lists and formulas, which are indented or marked, as they stand."""
    from lorascope.blocks import Code, Heading, Text

    made: list = [Heading("About")]
    for paragraph in docstring.split("\n\n"):
        lines = paragraph.splitlines()
        as_it_stands = any(line.startswith((" ", "-", "*", "|")) or line[:2].rstrip(".").isdigit() for line in lines)
        made.append(Code(paragraph) if as_it_stands else Text(" ".join(lines)))
    return made


def _as_json(described: "list[Description]", counts: "dict[str, int | str]", **facts: Any) -> str:
    """One object for each method; a count that cannot be had is null, with its reason."""
    from dataclasses import asdict

    import lorascope
    from lorascope.outputs import json_text

    records = []
    for each in described:
        record = {**asdict(each), "example": each.example, "facts": dict(each.facts)}
        if counts:
            count = counts[each.name]
            fits = isinstance(count, int)
            record |= {"trained_parameters": count if fits else None, "not_counted": None if fits else count}
        records.append(record)
    version = {"schema": 1, "lorascope": lorascope.__version__}
    return json_text({**version, **facts, "methods": records}, ensure_ascii=True, indent=1) + "\n"
