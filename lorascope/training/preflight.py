"""What is checked once of a model and its texts, before anything is trained on them.

Each check refuses what would end in an error deep inside torch, or in numbers that mean nothing, and says what to do.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorascope.adapt.layers import weight_of
from lorascope.adapt.targets import NotAdapted
from lorascope.errors import InputError, preview
from lorascope.models.loading import embeddings
from lorascope.training.batches import Encoded

PROBE = 16  # tokens
LEAK = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the largest logit; rounding is a hundredth of it
LEAK_NARROW = 2e-3  # of bfloat16 and float16: a small BERT shows 5e-3, a causal model 0
_POSITIONS = re.compile(r"^(wpe|position|positions|pos_emb\w*|(?!rel)\w*position_embeddings?|embed_positions)$")


@torch.no_grad()
def refuse_bidirectional(model: nn.Module, name: str) -> None:
    """InputError where a position's logits depend on later tokens: the next token, which is to be predicted, is seen.

    By behaviour, in eval mode: the second half of a short text is exchanged, and the first half's logits must stay.
    """
    tables = embeddings(model)
    if not tables or len(weight_of(tables[0])) < 3:
        return
    rows, device = len(weight_of(tables[0])), weight_of(tables[0]).device
    tokens = min(PROBE, _positions(model)[0] or PROBE)
    first = torch.arange(tokens, device=device).remainder(rows - 1).unsqueeze(0)  # (1, t)
    second = first.clone()
    second[:, tokens // 2 :] = (first[:, tokens // 2 :] + 1).remainder(rows)
    before, after = _logits(model, first), _logits(model, second)
    moved = (before - after)[:, : tokens // 2].abs().max().item()
    largest = max(before.abs().max().item(), after.abs().max().item())
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if moved > LEAK.get(dtype, LEAK_NARROW) * largest:
        raise InputError(
            f"{name} sees the next token: its output at a position depends on later tokens, so that a loss on next "
            "tokens means nothing",
            found="an encoder, or a model whose attention is not causal",
            expected="a decoder for CAUSAL_LM",
            hint="name a decoder, or train a classifier with model.task_type: SEQ_CLS",
        )


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    finally:
        for module, training in modes.items():
            module.training = training
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def fit_model(model: nn.Module, texts: Sequence[Encoded]) -> list[str]:
    """Whether the model can take the texts at all; sentences on what it can, but was not made for.

    Raises:
        InputError: a token id has no row in the embedding, or a text is longer than the positions that the model has.
    """
    tokens = [ids for each in texts for ids in each.tokens]
    longest = max(map(len, tokens))
    _refuse_unknown_ids(model, tokens, texts[0].pad)
    _refuse_several_ends(model, texts)
    limit, where = _positions(model)
    if limit is not None and longest > limit:
        raise InputError(
            "a text is longer than the positions that the model has",
            found=f"{longest} tokens",
            expected=f"at most {limit} ({where})",
            hint=f"set data.max_length to {limit} or less",
        )
    trained = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if limit is None and isinstance(trained, int) and 0 < trained < longest:
        return [f"texts of up to {longest} tokens are longer than the {trained} positions that the base was made for"]
    return []


def _refuse_unknown_ids(model: nn.Module, tokens: Sequence[Sequence[int]], pad: int) -> None:
    tables = embeddings(model)
    if not tables:
        return
    rows = len(weight_of(tables[0]))
    pads = [pad] if len({len(ids) for ids in tokens}) > 1 else []
    largest = max([max(ids, default=0) for ids in tokens] + pads)
    if largest >= rows:
        what = "padding token" if largest == pad else "token"
        raise InputError(
            f"the tokenizer gives a {what} that the model's embedding does not have",
            found=f"the id {largest}",
            expected=f"ids below {rows}, the embedding's rows",
            hint="use the tokenizer that belongs to the model, or resize the model's embedding and save it first",
        )


def _refuse_several_ends(model: nn.Module, texts: Sequence[Encoded]) -> None:
    """BART's and T5's classifiers read the last end token, and want as many in every text."""
    config = getattr(model, "config", None)
    end = getattr(config, "eos_token_id", None)
    if not getattr(config, "is_encoder_decoder", False) or not isinstance(end, int) or texts[0].labels is None:
        return
    counts = {list(ids).count(end) for each in texts for ids in each.tokens}
    if len(counts) > 1:
        raise InputError(
            "some texts hold the end token within, and this model classifies by the one at the end",
            found=f"{min(counts)} to {max(counts)} of them in a text",
            hint="take the end token's word out of the texts",
        )


def _positions(model: nn.Module) -> tuple[int | None, str]:
    """How many positions a table of them allows, and where it is; None where the model has no such table."""
    limits: list[tuple[int, str]] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and _POSITIONS.match(path.rpartition(".")[2]):
            first: Any = getattr(module, "offset", None)  # BART's and OPT's tables begin so many rows later
            if first is None:
                first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's, after its padding
            limits.append((module.num_embeddings - int(first), path))
    return min(limits, default=(None, ""))


def not_adapted_in_words(each: NotAdapted) -> str:
    several = len(each.paths) > 1
    fused = ", and these experts are fused into parameters of their own" * ("expert" in each.sort.lower())
    return (
        f"{len(each.paths)} module{'s' * several} of the class {each.sort} ({preview(each.paths, 2)}) "
        f"{'are' if several else 'is'} not adapted, {each.parameters:,} parameters: an update goes into Linear, "
        f"Conv1D and Embedding layers{fused}"
    )
