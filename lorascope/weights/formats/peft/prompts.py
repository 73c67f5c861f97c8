"""PEFT's prompt learning: virtual tokens instead of changes of weights (PEFT 0.21.2).

Whatever trained them, a file holds what came out, under one key without a prefix:
- PROMPT_TUNING, P_TUNING: `prompt_embeddings` (n, width), embeddings put before the text's;
- MULTITASK_PROMPT_TUNING: besides, `prefix_task_cols` and `prefix_task_rows`, a low-rank factor for each task;
- PREFIX_TUNING: `prompt_embeddings` (n, layers · 2 · heads · head_dim), keys and values put before the text's.
The model is not wrapped, so that a classifier's head is `base_model.<parameter>`. None of it is an update of a weight:
the tensor is one of the adapter's `non_weight_tensors`, which can be loaded and not analysed.
"""

from pathlib import Path
from typing import Any

from lorascope.errors import InputError, preview
from lorascope.outputs import write_json
from lorascope.updates.base import Stored
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.base import Ledger, refuse_loss
from lorascope.weights.formats.peft.config import COMMON, Config
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.safetensors import write_safetensors
from lorascope.weights.support import Support

KEY = "prompt_embeddings"
REASONS = {
    "PROMPT_TUNING": "prompt tuning: embeddings of virtual tokens before the text's, and no change of a weight",
    "P_TUNING": "P-tuning: embeddings of virtual tokens before the text's, and no change of a weight",
    "PREFIX_TUNING": "prefix tuning: keys and values of virtual tokens in every layer, and no change of a weight",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning: embeddings of virtual tokens, and no change of a weight",
    "CPT": "context-aware prompt tuning: embeddings of virtual tokens before the text's, and no change of a weight",
    "CARTRIDGE": "cartridge: keys and values of virtual tokens in every layer, and no change of a weight",
}
WRITTEN = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
_COUNTED = (*WRITTEN, "MULTITASK_PROMPT_TUNING")  # where num_virtual_tokens is the number of rows
_TASKS = ("prefix_task_cols", "prefix_task_rows")  # (tasks, n, ranks) and (tasks, ranks, width): factors of the prompt


class Prompts(Family):
    peft_types = dict.fromkeys(REASONS, frozenset())
    fields = """
        num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers
        prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
        encoder_hidden_size prefix_projection encoder_reparameterization_type encoder_dropout encoder_num_layers
        num_tasks num_ranks prompt_tuning_init_state_dict_path prompt_tuning_init_task
    """

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        saved, reasons = take_prompt(context.config, ledger)
        return Rest(saved=saved, non_weight_tensors=reasons)

    def claims_key(self, key: str) -> bool:
        return key == KEY

    def can_write(self, adapter: Adapter) -> bool:
        return adapter.settings.get("peft_type") in REASONS

    def write_files(self, adapter: Adapter, folder: Path) -> list[Path]:
        return write_prompt(adapter, folder)


families.register("prompts")(Prompts())


def take_prompt(config: Config, ledger: Ledger) -> tuple[dict[str, Stored], dict[str, str]]:
    """The virtual tokens and why they are not an update, by name; nothing where the file is of another method.

    Raises:
        InputError: the config announces other tokens than the file holds.
    """
    if config.peft_type not in REASONS or KEY not in ledger:
        return {}, {}
    shape, announced = tuple(ledger.peek(KEY).shape), config.raw.get("num_virtual_tokens")
    if config.peft_type not in _COUNTED:
        announced = None
    if announced is not None and type(announced) is not int:
        raise InputError("adapter_config.json: num_virtual_tokens is not a number", found=announced)
    if len(shape) != 2 or (announced is not None and shape[0] != announced * _submodules(config)):
        raise InputError(
            f"{KEY} is not what adapter_config.json announces", found=shape, expected=f"({announced} virtual tokens, …)"
        )
    keys = [KEY, *(key for key in _TASKS if key in ledger and config.peft_type == "MULTITASK_PROMPT_TUNING")]
    return {key: ledger.take(key) for key in keys}, dict.fromkeys(keys, REASONS[config.peft_type])


def write_prompt(adapter: Adapter, folder: Path) -> list[Path]:
    """Write virtual tokens and a trained head into `folder`; the two files that `PeftModel.from_pretrained` loads.

    Raises:
        InputError: the adapter holds updates besides, or no virtual tokens.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    refuse_loss(adapter)
    if adapter.settings["peft_type"] not in WRITTEN:
        raise InputError(f"lorascope reads PEFT's {adapter.settings['peft_type']} and does not write it")
    if adapter.updates or KEY not in adapter.saved:
        raise InputError(
            f"PEFT's {adapter.settings['peft_type']} holds virtual tokens and no updates",
            found=preview(adapter.updates) or "no virtual tokens",
        )
    heads = {name: stored for name, stored in adapter.saved.items() if name != KEY}
    announced = list(adapter.settings.get("modules_to_save") or [])
    modules = [name.rpartition(".")[0] for name in heads]
    announced += dict.fromkeys(m for m in modules if not any(f".{name}." in f".{m}." for name in announced))
    fields = COMMON | set(Prompts.fields.split())
    config: dict[str, Any] = {
        "base_model_name_or_path": None,
        "task_type": None,
        **{key: value for key, value in adapter.settings.items() if key in fields and key != "auto_mapping"},
        "num_virtual_tokens": adapter.saved[KEY].shape[0],
        "num_transformer_submodules": 1,
        "token_dim": adapter.settings.get("token_dim", adapter.saved[KEY].shape[1]),
        "modules_to_save": announced or None,
        "inference_mode": True,
    }
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    tensors = {KEY: adapter.saved[KEY], **{f"base_model.{name}": stored for name, stored in heads.items()}}
    write_safetensors(files[0], tensors, {"format": "pt"})
    write_json(files[1], config, sort_keys=True)
    return files


def _submodules(config: Config) -> int:
    """How many stacks have virtual tokens of their own: 2 in an encoder with a decoder, and prefixes are shared."""
    number = config.raw.get("num_transformer_submodules") or 1
    return number if type(number) is int and config.peft_type != "PREFIX_TUNING" else 1


_NAMES = {
    "PROMPT_TUNING": "prompt tuning", "P_TUNING": "P-tuning", "PREFIX_TUNING": "prefix tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning", "CPT": "CPT", "CARTRIDGE": "Cartridge",
}  # fmt: skip
SUPPORT = tuple(Support(_NAMES[type], refused=reason.partition(": ")[2], peft=type) for type, reason in REASONS.items())
