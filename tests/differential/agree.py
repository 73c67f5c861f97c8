"""What must agree on one draw: ΔW by file, ΔW by live layer, merged weights, `merge` on disk, `resize` at full rank and
PEFT's own merge. What is refused must be refused by a sentence that is on the list.
"""

import copy
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from lorascope.adapt import merge
from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.adapt.model_parameters import weight_name
from lorascope.analyses import truncate as resize
from lorascope.errors import InputError
from lorascope.models import adapter_base
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint
from tests.differential.draws import Draw, Trained, train

# What may be refused, and for which draws: a pattern of the message, and what it needs.
REFUSED = (
    (r"lora_bias|the bias of B|would lose", "lora_bias"),
    (r"to_save|would lose", "trainable_token_indices"),
    (r"tokens, and this base", "grown"),
    (r"writing fused experts is not supported", "target_parameters"),
    (r"PEFT's IA3|kinds of|no rank|holds one method|more than one value", ""),
)


class Outcome(dict):
    """What was checked, and what was refused."""


def agree(draw: Draw, folder: Path) -> Outcome | None:
    """Check one draw; None where PEFT itself refuses it. AssertionError where anything disagrees."""
    trained = train(draw, folder)
    if trained is None:
        return None
    found = Outcome()
    base = open_checkpoint(trained.base)
    adapter = io.read(trained.adapter, base)
    found["file"] = _file(draw, trained, adapter, base)
    found["merge"] = _merge(draw, trained, adapter)
    found["live"] = _live(draw, trained, adapter)
    found["resize"] = _resize(draw, trained, adapter, base)
    return found


def _tolerance(draw: Draw) -> float:
    """Of logits, relative: float32 sums of some hundred terms in another order; bfloat16 rounds every merged weight."""
    return 0.15 if draw.dtype == "bfloat16" else 2e-4


def _near(draw: Draw, logits: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    error = float((logits.double() - expected).norm() / expected.norm())
    assert error < _tolerance(draw), f"{what}: relative error {error:.3g} of the logits"


@torch.no_grad()
def _logits(model: Any, trained: Trained) -> torch.Tensor:
    return model.eval()(**trained.inputs).logits


def _file(draw: Draw, trained: Trained, adapter: Any, base: Checkpoint) -> str:
    """ΔW by the file's reader against PEFT's merge less the base, in float64 of PEFT's float32 model."""
    before = {name: p.detach().double() for name, p in _plain(trained, draw).named_parameters(remove_duplicate=False)}
    try:
        model = copy.deepcopy(trained.live)
    except RuntimeError:  # PEFT's tied adapters are no leaves of torch's graph, and cannot be copied
        model = PeftModel.from_pretrained(_plain(trained, draw), trained.adapter)
    model = (model.float() if draw.dtype == "bfloat16" else model).merge_and_unload()
    after = {name: p.detach().double() for name, p in model.named_parameters(remove_duplicate=False)}
    compared = 0
    for update in adapter.updates.values():
        name = weight_name(update)
        weight = base.lookup(update)
        if isinstance(weight, str):
            assert draw.grown, weight
            assert "vocabulary" in weight, weight
            continue
        change = (after[name] - before[name]).numpy()
        tying = draw.options.get("ensure_weight_tying") and draw.tied
        if tying and name.split(".")[-2] in ("embed_tokens", "lm_head"):
            continue  # PEFT merges tied adapters twice into the one weight, its layers add them once: logits judge
        if update.expert is not None:
            change = change[update.expert]
        mine = dense(update.delta(weight.read() if update.needs_base else None))
        mine = (mine.T if update.transposed else mine).reshape(change.shape)
        size = max(np.linalg.norm(change), 1e-3 * float(before[name].norm()))
        error = np.linalg.norm(mine - change) / size
        # PiSSA's start is an SVD in float32, whose error is one of W and not of ΔW; bfloat16 rounds W − S.
        limit = {"pissa": 2e-3, "olora": 2e-3}.get(update.kind, 2e-4)
        limit = 0.2 if draw.dtype == "bfloat16" and update.kind in ("pissa", "olora") else limit
        limit = max(limit, 5e-3) if draw.dtype == "bfloat16" else limit
        assert error < limit, f"ΔW of {update.name} by file: relative error {error:.3g}"
        compared += 1
    assert compared or not adapter.updates or draw.grown, "no update was compared"
    return f"{compared} updates"


def _plain(trained: Trained, draw: Draw) -> Any:
    model = trained.auto.from_pretrained(trained.base).float()
    if draw.grown:
        torch.manual_seed(draw.seed + 1)
        tokens = model.get_input_embeddings().weight.shape[0] + draw.grown
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return model


def _merge(draw: Draw, trained: Trained, adapter: Any) -> str:
    """The merged folder, loaded by transformers, against the live model."""
    try:
        model, tokenizer = adapter_base.load_base(adapter, trained.adapter, str(trained.base))
        done = merge.merge(model, adapter)
    except InputError as error:
        return _refused(draw, error)
    worst = max((one.rounding_loss for one in done.weights), default=0.0)
    assert draw.dtype == "bfloat16" or worst < 1e-2, f"{worst:.2g} of an update rounded away in float32"
    merge.save(model, tokenizer, trained.folder / "merged", done, {})
    again = trained.auto.from_pretrained(trained.folder / "merged")
    _near(draw, _logits(again, trained), trained.logits, "merge")
    return "merged"


def _live(draw: Draw, trained: Trained, adapter: Any) -> str:
    """Our own layers, filled from the file, in the model that PEFT trained on."""
    kinds = {update.kind for update in adapter.updates.values()}
    name = {"low_rank": "lora", "magnitude": "dora", "scaling": "ia3"}.get(next(iter(kinds), ""))
    fused = any(update.expert is not None or update.base_weight for update in adapter.updates.values())
    if len(kinds) != 1 or name is None or fused or adapter.rows or draw.options.get("bias") or draw.grown:
        return "no layer of ours"
    model = _plain(trained, draw).to(getattr(torch, draw.dtype))
    heads = sorted({parameter.rpartition(".")[0] for parameter in adapter.saved})
    method = methods.get(name)()
    try:
        injected = inject(model, method, targets=list(adapter.updates), modules_to_save=heads)
        injected.load(adapter)
    except InputError as error:
        return _refused(draw, error)
    _near(draw, _logits(model, trained), trained.logits, "live layers")
    injected.merge_and_unload()
    _near(draw, _logits(model, trained), trained.logits, "folded layers")
    return "loaded"


def _resize(draw: Draw, trained: Trained, adapter: Any, base: Checkpoint) -> str:
    """Every ΔW at its full rank, written and loaded by PEFT."""
    try:
        found = resize.decompose(adapter, base)
        ranks = {one.name: max(len(one.values), 1) for one in found.spectra}
        truncated = resize.truncate(adapter, ranks, base, "F32")
        io.write(resize.resized(adapter, truncated, base), trained.folder / "resized")
    except InputError as error:
        return _refused(draw, error)
    if found.skipped:
        return "left out: " + found.skipped[0].reason
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(_plain(trained, draw), trained.folder / "resized")
    _near(draw, _logits(model, trained), trained.logits, "resize at full rank")
    return "resized"


def _refused(draw: Draw, error: InputError) -> str:
    for pattern, needs in REFUSED:
        if re.search(pattern, str(error)) and (not needs or needs in draw.options or (needs == "grown" and draw.grown)):
            return f"refused: {error}"
    raise AssertionError(f"refused without need: {error}") from error
