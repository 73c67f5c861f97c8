"""Prompt tuning: n trained embeddings before those of the text; the model itself stays frozen.

Lester, Al-Rfou and Constant 2021, arXiv 2104.08691, §2: the model sees [P; X] with P (n, d) trained and X (t, d) the
text's own embeddings. n·d numbers. §2.1 and §3.2: P starts at the embeddings of tokens drawn from the vocabulary, which
does better than random numbers where the model is small; the paper draws from its 5,000 commonest tokens, this from all
of them, as PEFT does. `init: text` starts at the embeddings of a given text (PEFT's TEXT; with the names of the classes
it is the paper's best), repeated or cut to n.

The attention mask is extended by ones and positions of the text begin at n. What comes out of the backbone for virtual
positions is cut off again: heads see the text alone, so that logits (…, t, vocabulary) and labels are the base model's,
the loss has the same targets as any other method's, and a mean over tokens is over real ones. Only what the backbone
itself makes of its first position (BERT's pooler) sees the first virtual token, as in PEFT.

Files are PEFT's PROMPT_TUNING, with the one key `prompt_embeddings` (n, d); its P_TUNING files, which hold what their
encoder computed, can be loaded too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lorascope.adapt.inject import layer_generator
from lorascope.adapt.layer import Site, TrainedPart
from lorascope.adapt.method import Method, methods
from lorascope.adapt.sublayers import backbone, by_name, input_embeddings, learned_positions, parameters, require_room
from lorascope.errors import InputError
from lorascope.linalg.arrays import Float
from lorascope.updates.base import Update

Init = Literal["vocab", "text", "gaussian"]
KEY = "prompt_embeddings"


@dataclass(frozen=True)
class PromptConfig:
    """Settings of prompt tuning. It wants a large learning rate: the paper's is 0.3, for Adafactor; on the packaged
    task 3e-2 does well.

    Attributes:
        num_virtual_tokens: n, taken from the context. The paper's default is 100, and above 20 it gains little.
        init: "vocab" (embeddings of drawn tokens), "text" (those of `init_text`) or "gaussian", N(0, σ²) with the
            spread σ of the vocabulary's embeddings. PEFT's RANDOM is N(0, 1), far from any token.
        init_text: for "text".
        tokenizer_name_or_path: for "text"; null takes the base model's own.
    """

    num_virtual_tokens: int = 20
    init: Init = "vocab"
    init_text: str | None = None
    tokenizer_name_or_path: str | None = None

    def __post_init__(self) -> None:
        require_virtual_tokens(self.num_virtual_tokens)
        require_init(self.init, get_args(Init), self.init_text)


def require_virtual_tokens(number: int) -> None:
    if number < 1:
        raise InputError("num_virtual_tokens is too small", found=number, expected="a whole number from 1")


def require_init(init: str, inits: tuple[str, ...], text: str | None) -> None:
    if init not in inits:
        raise InputError("init is unknown", found=repr(init), expected=", ".join(inits))
    if (init == "text") != bool(text):
        raise InputError("init: text and init_text belong together", found=f"init {init!r} and init_text {text!r}")


def initial_tokens(model: nn.Module, config: Any, generator: torch.Generator) -> Tensor:
    """The n tokens (n,) that virtual ones start from: drawn from the vocabulary, or the text's, repeated or cut."""
    n = config.num_virtual_tokens
    vocabulary = input_embeddings(model).weight.shape[0]
    if config.init != "text":
        return torch.randint(vocabulary, (n,), generator=generator)
    from transformers import AutoTokenizer

    place = config.tokenizer_name_or_path or getattr(model.config, "_name_or_path", "")
    try:
        ids = AutoTokenizer.from_pretrained(place)(config.init_text, add_special_tokens=False)["input_ids"]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"no tokenizer at {place!r} for init_text", found=type(error).__name__, hint="set tokenizer_name_or_path"
        ) from error
    if not ids or max(ids) >= vocabulary:
        raise InputError("init_text has no tokens of this model", found=repr(config.init_text))
    return torch.tensor([ids[i % len(ids)] for i in range(n)])


class Prompt(TrainedPart):
    """P (n, d) before the embeddings of the text. In float32 or wider; the model gets it in its own dtype."""

    reason = "a soft prompt: embeddings before the text's, and no change of a weight"

    def __init__(self, base: nn.Module, prompt: Float[Tensor, "n d"]):
        super().__init__()
        self.prompt_embeddings = nn.Parameter(prompt)
        self._base = (base,)  # in a tuple, so that the base is no child of this module
        self._names, self._limit = parameters(base), learned_positions(base)
        missing = [name for name in ("inputs_embeds", "attention_mask") if name not in self._names]
        if missing:
            raise InputError(f"a soft prompt cannot be put before this model: it takes no {', '.join(missing)}")
        self._hooks: list[Any] = []
        self._added = 0
        self.set_enabled(True)

    @property
    def context_tokens(self) -> int:
        return self.prompt_embeddings.shape[0]

    def set_enabled(self, on: bool) -> None:
        base = self._base[0]
        if on and not self._hooks:
            before = base.register_forward_pre_hook(self._before, with_kwargs=True)
            self._hooks = [before, base.register_forward_hook(self._after)]
        elif not on:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def remove(self) -> None:
        self.set_enabled(False)

    @torch.no_grad()
    def load(self, updates: Mapping[str, Update], tensors: Mapping[str, Tensor]) -> None:
        """Take a prompt of any length."""
        prompt, width = tensors[KEY], self.prompt_embeddings.shape[1]
        if prompt.ndim != 2 or prompt.shape[1] != width:
            raise InputError(f"{KEY} has another shape", found=tuple(prompt.shape), expected=f"(n, {width})")
        self.prompt_embeddings = nn.Parameter(prompt.to(self.prompt_embeddings))

    def _before(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The call of the backbone, with the prompt in it.

        While text is generated the prompt goes in with the first call, and is in the cache in all later ones.
        """
        call = by_name(self._names, args, kwargs)
        n, cache = self.context_tokens, call.get("past_key_values")
        first = cache is None or cache.get_seq_length() == 0
        self._added = n if first else 0
        mask, positions, types = (call.get(key) for key in ("attention_mask", "position_ids", "token_type_ids"))
        if mask is not None:
            if mask.ndim != 2:
                raise InputError("a soft prompt needs an attention mask of (batch, tokens)", found=tuple(mask.shape))
            call["attention_mask"] = torch.cat([mask.new_ones(len(mask), n), mask], 1)
        if positions is not None:
            call["position_ids"] = _after_virtual(positions, n, add=first)
        if not first:
            return (), call
        x = call.get("inputs_embeds")
        x = input_embeddings(base)(call.pop("input_ids")) if x is None else x  # (b, t, d)
        require_room(n, x.shape[1], self._limit)
        prompt = self.prompt_embeddings.to(x.dtype).expand(len(x), -1, -1)
        call |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, x], 1)}
        if types is not None:
            call["token_type_ids"] = torch.cat([types.new_zeros(len(types), n), types], 1)
        return (), call

    def _after(self, base: nn.Module, args: tuple, output: Any) -> Any:
        """The backbone's output without the virtual positions."""
        n = self._added
        if not n:
            return output
        if isinstance(output, tuple):  # where return_dict is false
            return (output[0][:, n:], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, n:]
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(h[:, n:] for h in output.hidden_states)
        return output


def _after_virtual(positions: Tensor, n: int, add: bool) -> Tensor:
    """Positions (b, t) moved on by n, with those of the virtual tokens before them where `add`."""
    moved = positions + n
    if not add:
        return moved
    return torch.cat([torch.arange(n, device=positions.device).expand(len(positions), n), moved], 1)


@methods.register("prompt")
class PromptTuning(Method):
    """Trains the embeddings of n virtual tokens: n·d parameters."""

    name, paper, kind = "prompt", "Lester et al. 2021, arXiv 2104.08691", ""
    Config = PromptConfig
    config: PromptConfig
    layer_kinds = ()
    uses_targets = False
    not_identity = "virtual tokens are seen by every other token, whatever they hold"

    def install(self, model: nn.Module, seed: int) -> dict[str, TrainedPart]:
        base, generator = backbone(model), layer_generator(seed, KEY, f"n={self.config.num_virtual_tokens}")
        return {"prompt": Prompt(base, self._initial(base, generator))}

    def total_parameter_count(self, model: nn.Module, sites: list[Site]) -> int:
        return self.config.num_virtual_tokens * input_embeddings(backbone(model)).weight.shape[1]

    def settings(self) -> dict[str, Any]:
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.config.num_virtual_tokens,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",  # what PEFT does before it loads the file; TEXT would want a tokenizer
        }

    def _initial(self, base: nn.Module, generator: torch.Generator) -> Tensor:
        """P (n, d), in float32 or wider."""
        table = input_embeddings(base)
        dtype = torch.promote_types(table.weight.dtype, torch.float32)
        if self.config.init == "gaussian":
            std = float(table.weight.float().std())
            drawn = torch.empty(self.config.num_virtual_tokens, table.weight.shape[1])
            return drawn.normal_(std=std, generator=generator).to(table.weight.device, dtype)
        tokens = initial_tokens(base, self.config, generator).to(table.weight.device)
        with torch.no_grad():
            return table(tokens).to(dtype).clone()
