"""lorascope's own layout by hand, as its docstring says: every kind of update, saved tensors and parts."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from lorascope.linalg.fastfood import fingerprint
from tests.weights.example import double, normal
from tests.weights.examples import Example

RECORD = {"format": "lorascope", "schema": 1, "method": "test", "settings": {"r": 3}, "notes": ["by hand"]}


def put(folder: Path, tensors: dict[str, np.ndarray], **record) -> Path:
    """The two files in `folder`, without the writer's help."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "lorascope", "schema": "1"})
    text = json.dumps({**RECORD, "modules": {}, "saved": [], "parts": {}, **record})
    (folder / "adapter_config.json").write_text(text)
    return folder


def roles_of(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"updates.{name}.{role}": array for role, array in arrays.items()}


def entry(kind: str, arrays, **more) -> dict:
    return {"kind": kind, "scale": 1.0, "roles": list(arrays), **more}


def every_sort(folder: Path) -> Example:
    """Kinds with and without the base, a Conv1D, an embedding, an expert, a module named like another's role."""
    rng = np.random.default_rng(0)
    low = {"A": normal(rng, 3, 8), "B": normal(rng, 6, 3)}
    vera = {"A": normal(rng, 2, 8), "B": normal(rng, 6, 2), "d": normal(rng, 2), "b": normal(rng, 6)}
    scaling, tuned = {"in_scale": normal(rng, 8)}, {"tuned": normal(rng, 6, 8)}
    expert, nested = {"A": normal(rng, 2, 8), "B": normal(rng, 6, 2)}, {"delta": normal(rng, 6, 8)}
    weights = {"c.weight": normal(rng, 8, 6), "layers.1.fc.weight": normal(rng, 6, 8), "e": normal(rng, 2, 6, 8)}
    (folder / "base").mkdir()
    save_file(weights, folder / "base" / "model.safetensors")
    modules = {
        "layers.0.q": (entry("low_rank", low, scale=0.5), low),
        "layers.0.q.A": (entry("dense", nested), nested),
        "v": (entry("vera", vera, embedding=True, transposed=True), vera),
        "c": (entry("scaling", scaling, transposed=True), scaling),
        "layers.1.fc": (entry("tuned", tuned, base_weight="layers.1.fc.weight", notes=["whole"]), tuned),
        "e[1]": (entry("low_rank", expert, expert=1, base_weight="e"), expert),
    }
    tensors = {key: array for name, (_, arrays) in modules.items() for key, array in roles_of(name, arrays).items()}
    tensors |= {"saved.head.weight": normal(rng, 2, 4), "parts.head.weight.prompt": normal(rng, 5, 8)}
    described = {name: about for name, (about, _) in modules.items()}
    parts = {"head.weight.prompt": "a soft prompt"}
    path = put(folder / "own", tensors, modules=described, saved=["head.weight"], parts=parts)
    w = {name: double(array) for name, array in weights.items()}
    deltas = {
        "layers.0.q": 0.5 * double(low["B"]) @ double(low["A"]),
        "layers.0.q.A": double(nested["delta"]),
        "v": np.diag(double(vera["b"])) @ double(vera["B"]) @ np.diag(double(vera["d"])) @ double(vera["A"]),
        "c": w["c.weight"].T @ np.diag(double(scaling["in_scale"])) - w["c.weight"].T,
        "layers.1.fc": double(tuned["tuned"]) - w["layers.1.fc.weight"],
        "e[1]": double(expert["B"]) @ double(expert["A"]),
    }
    return Example(path, deltas, folder / "base")


def drawn(folder: Path) -> Example:
    """Frozen projections given by their draw."""
    rng = np.random.default_rng(1)
    d, b = normal(rng, 3), normal(rng, 6)
    draws = {"A": ([3, 8], 0.5, 7), "B": ([6, 3], 1.5, 11)}
    arrays = {
        role: torch.empty(shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed)).double().numpy()
        for role, (shape, bound, seed) in draws.items()
    }
    about = entry("vera", ["A", "B", "d", "b"])
    about["drawn"] = {r: {"shape": shape, "bound": bound, "seed": seed} for r, (shape, bound, seed) in draws.items()}
    path = put(folder / "own", roles_of("q", {"d": d, "b": b}), modules={"q": about})
    return Example(path, {"q": np.diag(double(b)) @ arrays["B"] @ np.diag(double(d)) @ arrays["A"]})


def only_parts(folder: Path) -> Example:
    """No weight update at all: it is read, and the analysis says why it has nothing to do."""
    rng = np.random.default_rng(2)
    return Example(put(folder / "own", {"parts.prompt": normal(rng, 5, 8)}, parts={"prompt": "a soft prompt"}), {})


def in_a_subspace(folder: Path) -> Example:
    """Three parameters, one of them a vector and one turned, that four coordinates and two factors give."""
    rng = np.random.default_rng(3)
    theta, lam = normal(rng, 4), normal(rng, 2)
    parameters = [["q.weight", [6, 8]], ["q.bias", [6]], ["e.weight", [10, 5]]]
    plan = {"projection": "dense", "scope": "global", "columns": 4, "seed": 9, "parameters": parameters}
    plan |= {"groups": [0, 0, 1], "fingerprint": fingerprint()}
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence((9, 0))))
    p = double(stream.standard_normal((48 + 6 + 50, 4), dtype=np.float32)) / np.sqrt(104)
    pieces = np.split(p @ double(theta), [48, 54])
    deltas = {
        "q": double(lam)[0] * pieces[0].reshape(6, 8),
        "q.bias": double(lam)[0] * pieces[1].reshape(6, 1),
        "e": double(lam)[1] * pieces[2].reshape(10, 5).T,
    }
    modules = {
        name: {
            **entry("dense", ["delta"], base_weight=parameter, transposed=name == "e", embedding=name == "e"),
            "projected": {"delta": {"index": i, "shape": list(deltas[name].shape), "turned": name == "e"}},
        }
        for i, (name, (parameter, _)) in enumerate(zip(deltas, parameters, strict=True))
    }
    parts = dict.fromkeys(("subspace.theta", "subspace.lambda"), "coordinates")
    tensors = {"parts.subspace.theta": theta, "parts.subspace.lambda": lam}
    return Example(put(folder / "own", tensors, modules=modules, parts=parts, subspace=plan), deltas)


EXAMPLES = [every_sort, drawn, only_parts, in_a_subspace]
