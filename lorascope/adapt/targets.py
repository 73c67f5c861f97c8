"""Which layers of a model an adapter goes into.

Targets are
- a list of names: a module is chosen where its path equals a name or ends with "." + name (as PEFT has it);
- one of the words "attention", "mlp", "all-linear";
- any other string: a regular expression that must match the whole path.

`all-linear` is every Linear and Conv1D except the output head: the output embedding, or a classification head, which
has nothing pretrained to adapt; convolutions and embeddings are chosen by name or pattern. `attention` is those of them
below a module that has "attn" or "attention" in its name, `mlp` the others inside the model's repeated blocks.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from torch import nn

from lorascope.adapt.dequantise import is_quantised
from lorascope.adapt.layer import AdaptedLayer, Site
from lorascope.architectures import TASK_HEADS, ends_with, in_attention
from lorascope.errors import InputError, preview
from lorascope.patterns import Pattern

CARRIES = "_lorascope_parts"  # where `inject` notes the names of a model's parts that are no layer's update
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ADAPTABLE = "a Linear, a Conv1D, an Embedding or a convolution without groups"
WORDS = ("attention", "mlp", "all-linear")


def find_sites(model: nn.Module, targets: str | Sequence[str], excluded: Sequence[str] = ()) -> list[Site]:
    """The layers that `targets` choose, in the model's order.

    Args:
        model: the base model, without adapters.
        targets: names, a regular expression or one of WORDS; see the module's docstring.
        excluded: paths of modules that are trained as a whole; nothing in them can be adapted besides.

    Raises:
        InputError: a target chooses nothing that can be adapted, is no regular expression, or lies in `excluded`.
    """
    sites = {name: site for name, layer in model.named_modules() if (site := site_of(model, name, layer))}
    if isinstance(targets, str):
        chosen = _by_word(model, sites, targets, excluded) if targets in WORDS else _by_regex(model, sites, targets)
    else:
        chosen = _by_names(model, sites, targets)
    inside = [name for name in chosen if any(_within(name, path) for path in excluded)]
    if inside:
        raise InputError(
            f"{preview(inside)} cannot be both adapted and trained as a whole",
            hint="take the name out of targets or out of modules_to_save; a new head or pooler is trained as a whole "
            "without being named",
        )
    return [sites[name] for name in sites if name in chosen]


def site_of(model: nn.Module, name: str, layer: nn.Module) -> Site | None:
    """The layer as a Site, or None where it is of a sort that carries no update."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, nn.Linear):
        # torch's attention never calls its out_proj: it reads the weight, so an update there would have no effect.
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            return None
        return Site(name, layer, "linear", layer.in_features, layer.out_features, transposed=False)
    if is_quantised(layer):  # GPTQ's, AWQ's and their like, which are no Linear
        return Site(
            name, layer, "linear", cast(int, layer.in_features), cast(int, layer.out_features), transposed=False
        )
    if isinstance(layer, Conv1D):
        d_in, d_out = layer.weight.shape
        return Site(name, layer, "conv1d", d_in, d_out, transposed=True)
    if isinstance(layer, CONVOLUTIONS) and layer.groups == 1:
        return Site(name, layer, "conv", layer.weight[0].numel(), layer.out_channels, transposed=False)
    if isinstance(layer, nn.Embedding) and layer.max_norm is None:  # max_norm rewrites the weight in every forward
        return Site(name, layer, "embedding", layer.num_embeddings, layer.embedding_dim, transposed=True)
    return None


def match_modules(model: nn.Module, names: Sequence[str], option: str) -> list[str]:
    """Paths of the modules that equal a name or end with "." + name. InputError where a name matches none."""
    paths = [path for path, _ in model.named_modules() if path]
    for name in names:
        if not any(ends_with(path, [name]) for path in paths):
            raise _nothing(f"{option}: no module is named {name!r}", name, paths)
    return [path for path in paths if ends_with(path, names)]


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(module + ".")


def _by_names(model: nn.Module, sites: dict[str, Site], names: Sequence[str]) -> set[str]:
    for name in names:
        if not any(ends_with(path, [name]) for path in sites):
            matched = [path for path, _ in model.named_modules() if path and ends_with(path, [name])]
            what = f"targets: no layer that can be adapted is named {name!r}"
            if matched:
                sort = type(model.get_submodule(matched[0])).__name__
                raise InputError(what, found=f"{matched[0]}, a {sort}", expected=ADAPTABLE)
            raise _nothing(what, name, list(sites))
    chosen = {path for path in sites if ends_with(path, names)}
    if not chosen:
        raise _nothing("targets: the list is empty", "", list(sites))
    return chosen


def _by_regex(model: nn.Module, sites: dict[str, Site], pattern: str) -> set[str]:
    regex = Pattern(pattern, "targets")
    chosen = {path for path in sites if regex.fullmatch(path)}
    if not chosen:
        hint = None
        if any(ends_with(path, [pattern]) for path in sites):
            hint = f"to choose by name write a list: [{pattern}]"
        raise _nothing(f"targets: the pattern {pattern!r} matches no layer as a whole", pattern, list(sites), hint)
    return chosen


def _by_word(model: nn.Module, sites: dict[str, Site], word: str, excluded: Sequence[str]) -> set[str]:
    heads = [*_heads(model), *excluded]
    linear = {
        path
        for path, site in sites.items()
        if site.kind not in ("embedding", "conv") and not any(_within(path, head) for head in heads)
    }
    attention = {path for path in linear if in_attention(path)}
    blocks = {path for path in linear if any(part.isdigit() for part in path.split("."))}
    chosen = {"all-linear": linear, "attention": attention, "mlp": blocks - attention}[word]
    if not chosen:
        raise _nothing(f"targets: this model has no layer that counts as {word!r}", word, list(sites))
    return chosen


def _heads(model: nn.Module) -> list[str]:
    """Paths of the output embedding and of a task head."""
    output = cast(Any, model).get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    paths = [path for path, module in model.named_modules() if output is not None and module is output]
    return paths + [path for path, _ in model.named_children() if path in TASK_HEADS]


@dataclass(frozen=True)
class NotAdapted:
    """Modules of one class that targets pass over, since no update can go into them.

    Attributes:
        sort: their class, `MixtralExperts`.
        paths: where they are.
        parameters: how many numbers of matrices (or higher tensors) they own.
    """

    sort: str
    paths: tuple[str, ...]
    parameters: int


LITTLE = 0.01  # the share of the model's parameters below which modules that are left out are not worth a word


def not_adapted(
    model: nn.Module, targets: str | Sequence[str], chosen: Collection[str], excluded: Sequence[str] = ()
) -> list[NotAdapted]:
    """What a reader of `targets` would take for adapted and is not: experts fused into one tensor, torch's attention,
    convolutions, bare parameters. Of `attention` those of attention, of `mlp` (and of names that choose feed-forward
    layers) the others, of `all-linear` both; the largest first.

    Args:
        model: with the adapters in it.
        chosen: paths of the adapted layers.
        excluded: paths of modules that are trained as a whole.
    """
    word = targets if isinstance(targets, str) else ""
    rest = word in ("all-linear", "mlp") or any(not in_attention(path) for path in chosen)
    aside = [*_heads(model), *excluded, *chosen]
    by_class: dict[str, list[tuple[str, int]]] = {}
    for path, module in model.named_modules():
        size = sum(p.numel() for p in module._parameters.values() if p is not None and p.ndim > 1)
        if not size or isinstance(module, nn.Embedding) or any(_within(path, each) for each in aside):
            continue
        attends = in_attention(path) or isinstance(module, nn.MultiheadAttention)
        wanted = (word == "all-linear" or word == "attention") if attends else rest and word != "attention"
        if wanted and ((site := site_of(model, path, module)) is None or site.kind == "conv"):
            by_class.setdefault(type(module).__name__, []).append((path, size))
    least = LITTLE * sum(p.numel() for p in model.parameters())
    groups = [
        NotAdapted(sort, tuple(p for p, _ in modules), sum(n for _, n in modules)) for sort, modules in by_class.items()
    ]
    kept = [each for each in groups if each.parameters >= least or "expert" in each.sort.lower()]
    return sorted(kept, key=lambda each: -each.parameters)


def _nothing(what: str, wanted: str, paths: list[str], hint: str | None = None) -> InputError:
    """An error that says what could have been named: the distinct last parts of the paths, near ones first."""
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in paths if not path.rpartition(".")[2].isdigit()))
    near = get_close_matches(wanted.rpartition(".")[2], names, n=2)
    available = preview([*near, *(name for name in names if name not in near)], most=20)
    if hint is None and near:
        hint = f"did you mean {near[0]!r}?"
    return InputError(what, expected=f"one of {available}" if names else "a model with linear layers", hint=hint)


def refuse_adapted(model: nn.Module) -> None:
    """InputError where this is no model, or carries adapters already, ours or PEFT's: a layer has one update here."""
    if not isinstance(model, nn.Module):
        raise InputError("an adapter goes into a torch module", found=type(model).__name__, expected="a base model")
    of_peft = [path for path, module in model.named_modules() if type(module).__module__.startswith("peft.")]
    if of_peft:
        plain = "model.unload()" if hasattr(model, "unload") else "a fresh base model"
        raise InputError(
            f"this {type(model).__name__} carries an adapter of PEFT's already",
            found=preview([path for path in of_peft if path], 2),
            hint=f"inject into {plain}, or call lorascope.read(model) to analyse the adapter that it carries",
        )
    adapted = [path for path, module in model.named_modules() if isinstance(module, AdaptedLayer)]
    adapted += getattr(model, CARRIES, ())
    if adapted:
        raise InputError(
            "the model carries an adapter already",
            found=preview(adapted, 2),
            hint="name another one by adapter_name=, or load a fresh base model",
        )
