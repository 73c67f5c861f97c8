"""What a run's model does to real inputs: each updated layer's response to ΔW and to W, and hidden states by layer.

Only a bounded number of tokens is looked at, the same ones in every layer and every model, chosen by a seed and as
evenly over the texts as it goes. Padding is never among them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.adapt.model_parameters import weight_name
from lorascope.errors import InputError
from lorascope.linalg.matrix import Matrix
from lorascope.models.bf16_products import fast_on_cpu
from lorascope.run_data import LayerActivations, Recorded, RunActivations, labels_of
from lorascope.training.batches import Encoded
from lorascope.training.foreign import open_evaluated
from lorascope.training.given import NOTHING, Given
from lorascope.training.reopen import Reopened
from lorascope.updates.base import Update
from lorascope.weights.adapter import Skipped

MAX_SHARE_TOKENS = 8192  # that the responses are recorded on: enough for a 5 % quantile to 0.3 % of tokens
SAME_BASE = 1e-3  # relative difference of hidden states that device and batches may make


@dataclass(frozen=True)
class Tokens:
    """Tokens of some texts: in pass `i` (texts `batches[i]`, padded to one length) those at `rows[i]`, `places[i]`.

    `texts` (n,) says which text each comes from, in the order in which they come.
    """

    batches: tuple[tuple[int, ...], ...]
    rows: tuple[np.ndarray, ...]
    places: tuple[np.ndarray, ...]

    @property
    def texts(self) -> np.ndarray:
        return np.concatenate([np.asarray(b)[r] for b, r in zip(self.batches, self.rows, strict=True)])

    def __len__(self) -> int:
        return sum(map(len, self.rows))


def choose(texts: Encoded, most: int, size: int, seed: int = 0) -> Tokens:
    """At most `most` tokens: the same number from each text as far as it has so many; fewer texts where even one a text
    would be too many.

    Args:
        size: texts in one pass.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([len(ids) for ids in texts.tokens])
    quota = 0
    while quota < lengths.max() and np.minimum(lengths, quota + 1).sum() <= most:
        quota += 1
    chosen = rng.permutation(len(lengths))[:most] if quota == 0 else np.arange(len(lengths))
    places = {int(i): np.sort(rng.permutation(lengths[i])[: max(quota, 1)]) for i in chosen}
    batches = [[i for i in batch if i in places] for batch in texts.by_length(size)]
    batches = [batch for batch in batches if batch]
    rows = [np.repeat(np.arange(len(batch)), [len(places[i]) for i in batch]) for batch in batches]
    return Tokens(
        tuple(map(tuple, batches)), tuple(rows), tuple(np.concatenate([places[i] for i in batch]) for batch in batches)
    )


@torch.no_grad()
def hidden_states(run: Reopened, texts: Encoded, tokens: Tokens, *, pooled: bool = False) -> list[np.ndarray]:
    """(n, width) float32 for the embeddings and every layer, of the model as it is now.

    Args:
        pooled: a sample is the mean over all tokens of a text, and not one token; n is then the number of texts.
    """
    encoder = getattr(run.model, getattr(run.model, "base_model_prefix", ""), run.model)
    by_layer: list[list[np.ndarray]] = []
    for batch, rows, places in zip(tokens.batches, tokens.rows, tokens.places, strict=True):
        given = texts.batch(batch).to(run.world.device)
        states = encoder(
            input_ids=given.input_ids, attention_mask=given.attention_mask, output_hidden_states=True
        ).hidden_states
        mask = given.attention_mask.unsqueeze(-1)
        for layer, state in enumerate(states):
            wide = state.float()
            kept = (wide * mask).sum(1) / mask.sum(1) if pooled else wide[_index(rows), _index(places)]
            if layer == len(by_layer):
                by_layer.append([])
            by_layer[layer].append(kept.cpu().numpy())
    return [np.concatenate(parts) for parts in by_layer]


@dataclass(frozen=True)
class Responses:
    """How the updated layers respond, with the trained ΔW in the model.

    Attributes:
        by_module: by the update's name, one row per token and use of the module, with the columns ‖ΔW x‖², ‖W x‖²,
            ‖(W + ΔW) x‖², ⟨ΔW x, W x⟩ and ‖x‖².
        uses: how often one pass calls the module.
        skipped: updates that have no such numbers: the reason by name.
    """

    by_module: Mapping[str, np.ndarray]
    uses: Mapping[str, int]
    skipped: Mapping[str, str]


@torch.no_grad()
def responses(run: Reopened, texts: Encoded, tokens: Tokens) -> Responses:
    """Pass the texts through the model and look at what enters every updated layer.

    W x is (W + ΔW) x, from the weight in the model, less ΔW x, from the factors: nothing is stored twice.
    """
    skipped = {name: why for name, update in run.updates.items() if (why := _why_not(run.model, update))}
    watches = {}
    for name, update in run.updates.items():
        if name not in skipped:
            module = run.model.get_submodule(weight_name(update).rpartition(".")[0])
            watches[name] = _Watch(module, _applied(run.delta(name), run.world.device), update.transposed)
    handles = [watch.module.register_forward_pre_hook(watch) for watch in watches.values()]
    try:
        for batch, rows, places in zip(tokens.batches, tokens.rows, tokens.places, strict=True):
            given = texts.batch(batch).to(run.world.device)
            count, longest = given.input_ids.shape
            for watch in watches.values():
                watch.expect((count, longest), _index(rows), _index(places))
            with fast_on_cpu(run.model):
                run.model(input_ids=given.input_ids, attention_mask=given.attention_mask)
    finally:
        for handle in handles:
            handle.remove()
    for name, watch in watches.items():
        if watch.trouble or not watch.seen:
            skipped[name] = watch.trouble or "the model does not call this module"
    kept = {name: watch for name, watch in watches.items() if name not in skipped}
    return Responses(
        {name: np.concatenate(watch.seen) for name, watch in kept.items()},
        {name: len(watch.seen) // len(tokens.batches) for name, watch in kept.items()},
        skipped,
    )


def _why_not(model: nn.Module, update: Update) -> str:
    """Why an update has no inputs to look at; empty where it has."""
    path, _, attribute = weight_name(update).rpartition(".")
    module = model.get_submodule(path)
    if update.expert is not None:
        return "a fused expert: which tokens it gets is not visible from outside"
    if isinstance(module, nn.Embedding):
        return "an embedding: its inputs are token numbers"
    weight = getattr(module, "weight", None)
    if attribute != "weight" or weight is None or weight.ndim < 2:
        return "a vector, not a map of inputs"
    return "a convolution: its inputs are patches" if update.kernel or weight.ndim > 2 else ""


def _index(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _applied(change: Matrix, device: torch.device) -> Callable[[Tensor], Tensor]:
    """x (k, d_in) to x ΔWᵀ (k, d_out), in float32."""

    def placed(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32)

    if (product := change.factors()) is not None:
        down, up = placed(product.right.T), placed(product.left.T)
        return lambda x: x @ down @ up
    whole = placed(change.dense().T)
    return lambda x: x @ whole


class _Watch:
    """A hook on one module: what it does to the chosen rows of its input, at every call."""

    def __init__(self, module: nn.Module, update: Callable[[Tensor], Tensor], transposed: bool):
        self.module, self.update, self.transposed = module, update, transposed
        self.seen: list[np.ndarray] = []
        self.trouble = ""

    def expect(self, shape: tuple[int, int], rows: Tensor, places: Tensor) -> None:
        self.shape, self.rows, self.places = shape, rows, places

    def __call__(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        x = self._chosen(inputs[0]) if inputs and isinstance(inputs[0], Tensor) else None
        if x is None:
            self.trouble = "its input has not one row for each token, or for each text"
            return
        x = x.float()
        weight = cast(Tensor, module.weight).float()
        changed = self.update(x)
        total = x @ (weight if self.transposed else weight.t())
        base = total - changed
        columns = [changed.square(), base.square(), total.square(), changed * base, x.square()]
        self.seen.append(torch.stack([c.double().sum(-1) for c in columns], dim=-1).cpu().numpy())

    def _chosen(self, x: Tensor) -> Tensor | None:
        """The rows of the chosen tokens; where the input has one row for each text, all of them."""
        texts, longest = self.shape
        if x.ndim == 3 and tuple(x.shape[:2]) == self.shape:
            return x[self.rows, self.places]
        if x.ndim == 2 and len(x) == texts * longest:
            return x[self.rows * longest + self.places]
        return x if x.ndim == 2 and len(x) == texts else None


# --- several runs on the same texts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampling:
    """Which texts and tokens are recorded.

    Attributes:
        split: another split than the one held out; None is the held-out one.
        max_samples: at most so many texts.
        samples: tokens of the hidden states, spread evenly over the texts.
        pooled: a sample of hidden states is the mean over a text's tokens, and not one token.
        seed: chooses the tokens.
    """

    split: str | None = None
    max_samples: int = 512
    samples: int = 2048
    pooled: bool = False
    seed: int = 0


def record(
    folders: Sequence[Path],
    sampling: Sampling = Sampling(),
    device: str = "auto",
    on_note: Callable[[str], None] = lambda text: None,
    given: Given = NOTHING,
) -> Recorded:
    """What `analyses.activations` takes: the models of finished runs, opened one after another, on the same texts.

    Args:
        folders: of runs or adapters of one base model; the texts are those that the first holds out.
        on_note: told what a reopened run differs in from the trained model.
        given: of adapters that were trained elsewhere, their base and data.

    Raises:
        InputError: a folder holds no finished run or adapter, or the runs are of several base models.
    """
    labels = labels_of([str(folder.absolute()) for folder in folders])
    recorder: _Recorder | None = None
    runs: list[RunActivations] = []
    notes: list[str] = []
    base: list[np.ndarray] = []
    for folder, label in zip(folders, labels, strict=True):
        run = open_evaluated(folder, given, device, sampling.split, sampling.max_samples)
        for note in run.notes:
            on_note(note)
        notes += run.notes
        if recorder is None:
            recorder = _Recorder(run, sampling)
        elif run.held_out.tokens != recorder.texts.tokens:
            notes.append(f"{label} was held out on other texts; all runs see those of {labels[0]}")
        states = recorder.base_states(run)
        if base and _differ(states, base):
            raise InputError(f"{folder} has another base model than {folders[0]}", hint="compare runs of one base")
        base = base or states
        runs.append(recorder.activations(run, label))
        del run  # before the next model is opened
    assert recorder is not None
    of = recorder.of or f"{sampling.split or 'held-out'} texts of {folders[0]}"
    source = f"{len(recorder.texts.tokens):,} {of}"
    tokens = len(recorder.share_tokens)
    return Recorded(tuple(runs), tuple(base), recorder.units, sampling.pooled, tokens, source, tuple(notes))


class _Recorder:
    """Records each run on the texts and tokens that were chosen on the first."""

    def __init__(self, run: Reopened, sampling: Sampling):
        self.texts, self.pooled, self.of = run.held_out, sampling.pooled, run.texts_of
        size = run.config.training.per_device_eval_batch_size
        self.tokens = choose(self.texts, sampling.samples, size, sampling.seed)
        self.share_tokens = choose(self.texts, MAX_SHARE_TOKENS, size, sampling.seed)

    @property
    def units(self) -> np.ndarray:
        """(n,) the text of each sample of hidden states."""
        if self.pooled:
            return np.concatenate([np.asarray(batch) for batch in self.tokens.batches])
        return self.tokens.texts

    def base_states(self, run: Reopened) -> list[np.ndarray]:
        """Hidden states of the base model, with no ΔW in it."""
        run.put({})
        states = hidden_states(run, self.texts, self.tokens, pooled=self.pooled)
        run.restore()
        return states

    def activations(self, run: Reopened, label: str) -> RunActivations:
        recorded = responses(run, self.texts, self.share_tokens)
        layers = []
        for name, values in recorded.by_module.items():
            change = run.delta(name)
            norms = change.frobenius_norm(), float(np.linalg.norm(run.base_weight(name)))
            layers.append(
                LayerActivations(name.removesuffix(".weight"), values, recorded.uses[name], change.shape, *norms)
            )
        skipped = tuple(Skipped(name, reason, adapter=label) for name, reason in recorded.skipped.items())
        states = hidden_states(run, self.texts, self.tokens, pooled=self.pooled)
        method = f"{run.config.method.name}, {len(run.updates)} updates"
        return RunActivations(label, method, tuple(layers), skipped, tuple(states))


def _differ(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """Whether two base models' hidden states differ by more than device and batches may make."""
    if [x.shape for x in a] != [y.shape for y in b]:
        return True
    return any(np.linalg.norm(x - y) > SAME_BASE * np.linalg.norm(y) for x, y in zip(a, b, strict=True))
