"""How far a trained ΔW lies where the gradient of the base's own weights points before any training.

G (d_out, d_in) is the gradient of the mean loss with respect to W, of a run's first training texts: what one step of
full fine-tuning by gradient descent would follow. LoRA-One (arXiv 2502.01235) and LoRA-GA (arXiv 2407.05000) start from
its leading singular directions.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.study.measures.finished import opened
from lorascope.study.measures.overlap import started

if TYPE_CHECKING:
    from lorascope.training.run import Prepared

START, TRAINED_HEAD, PERMUTED = "at the start", "with a trained head", "labels permuted"
BEFORE = "A before training"
Row = dict[str, Any]


def against_gradient(folders: Sequence[Path], names: str, rank: int, texts: int, replicate: int) -> Iterator[Row]:
    """The r leading directions of each run's ΔW against those of G, module by module.

    Args:
        folders: of one replicate: the frozen base with a trained head (a decoder's base as it is), a LoRA, whose texts,
            head and modules are taken, and other runs.
        names: of the LoRA and the other runs, with semicolons between them.
        rank: r.
        texts: how many training texts G is of.
    """
    import torch

    from lorascope.linalg import subspace
    from lorascope.training import config, run

    reference, lora, *_ = folders
    prepared = run.prepare(config.load(lora / "config.yaml"), torch.device("cpu"))
    trained = {}
    for name, folder in zip(names.split(";"), folders[1:], strict=True):
        finished = opened(folder)  # full fine-tuning's ΔW needs the base
        trained[name] = {module: subspace.bases(finished.delta(module)) for module in prepared.injected.layers}
    first = started(lora)
    for which in (START, PERMUTED, TRAINED_HEAD) if prepared.injected.saved else (START, PERMUTED):
        if which == TRAINED_HEAD:
            take_head(prepared, reference)
        gradients = full_gradients(prepared, texts, permuted=which == PERMUTED)
        for module, gradient in gradients.items():
            of_gradient = subspace.bases(gradient)
            for name, of_modules in trained.items():
                yield {"gradient": which, "method": name, "module": module,
                       **compared(of_modules[module], of_gradient, rank)}  # fmt: skip
            rows = subspace.row_basis(first[module])[0]
            excess = {"right": excess_overlap(rows, of_gradient.right[:, : rows.shape[1]])}
            yield {"gradient": which, "method": BEFORE, "module": module, **excess}


def take_head(prepared: "Prepared", reference: Path) -> None:
    """Give the model the head that was trained on the frozen base."""
    import torch

    from lorascope.weights import io

    tensors = io.read(reference / "adapter").saved
    for path, module in prepared.injected.saved.items():
        state = {name: torch.from_numpy(tensors[f"{path}.{name}"].read()) for name in module.state_dict()}
        module.load_state_dict(state)


def full_gradients(prepared: "Prepared", texts: int, *, permuted: bool = False) -> dict[str, np.ndarray]:
    """G (d_out, d_in) of every adapted module, in float64, of the mean loss over the first training texts.

    Args:
        permuted: give each pass's targets to each other's texts: what is left of G is not of the task.
    """
    import torch

    from lorascope.models.bf16_products import fast_on_cpu
    from lorascope.training.scores import cross_entropy

    train, model = prepared.train, prepared.injected.model
    weights: dict[str, Any] = {name: layer.base.weight for name, layer in prepared.injected.layers.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    sums = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    count, size = min(texts, len(train)), 32 if train.labels is not None else 8
    generator = torch.Generator().manual_seed(0)
    model.eval()
    for begin in range(0, count, size):
        indices = list(range(begin, min(begin + size, count)))
        batch = train.batch(indices)
        labels = batch.labels
        if permuted:
            flat = labels.flatten()
            labels = flat[torch.randperm(len(flat), generator=generator)].reshape(labels.shape)
        with fast_on_cpu(model):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            cross_entropy(logits, labels, batch.input_ids.shape[1]).backward()
        for name, weight in weights.items():
            sums[name] += weight.grad.float()
        model.zero_grad(set_to_none=True)
    targets = train.targets(range(count))
    for weight in weights.values():
        weight.requires_grad_(False)
    maps = {
        name: sums[name].t() if layer.transposed else sums[name] for name, layer in prepared.injected.layers.items()
    }
    return {name: each.double().numpy() / targets for name, each in maps.items()}


def compared(delta: Any, gradient: Any, rank: int) -> Row:
    """Of two `subspace.Bases`: the excess of φ(r, r) on both sides, and how far ΔW goes down G.

    "cosine" is ⟨ΔW, −G⟩/(‖ΔW‖‖G‖); "best" is what the best ΔW of rank r would have.
    """
    from lorascope.linalg import subspace

    r = min(rank, delta.rank, gradient.rank)
    cosine = subspace.cosine(delta, gradient)
    energy = np.cumsum(gradient.sigma**2)
    best = float(np.sqrt(energy[min(rank, gradient.rank) - 1] / energy[-1]))
    return {
        "left": excess_overlap(delta.left[:, :r], gradient.left[:, :r]),
        "right": excess_overlap(delta.right[:, :r], gradient.right[:, :r]),
        "cosine": None if cosine is None else -cosine,
        "best": best,
    }


def excess_overlap(u: np.ndarray, v: np.ndarray) -> float:
    """(φ − chance)/(1 − chance) of two subspaces (n, i), (n, j): 0 of random ones on average, 1 of equal ones."""
    from lorascope.linalg import haar

    chance = haar.phi(u.shape[0], u.shape[1], v.shape[1]).mean
    phi = float(((u.T @ v) ** 2).sum()) / min(u.shape[1], v.shape[1])
    return (phi - chance) / (1 - chance)
