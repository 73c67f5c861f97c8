"""An adapter's folder as others expect it: complete config, label names, tokenizer, and a card with the findings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn

from lorascope.adapt.protocols import AdaptedModel
from lorascope.architectures.classes import CONDITIONAL, task_of_class
from lorascope.blocks import Finding
from lorascope.models import card
from lorascope.models.config import ModelConfig, TaskType
from lorascope.outputs import staged, write_text
from lorascope.weights import io
from lorascope.weights.adapter import Adapter

PEFT_VERSION = "0.21.2"  # the release whose layout is written
# What LoraConfig has besides what a method says, at PEFT's defaults; `auto_mapping` is for PEFT's own classes.
LORA_DEFAULTS: Mapping[str, Any] = {
    "alpha_pattern": {}, "rank_pattern": {}, "bias": "none", "loftq_config": {}, "lora_bias": False,
    "megatron_core": "megatron.core", "qalora_group_size": 16, "use_dora": False, "use_qalora": False,
    "use_rslora": False, "ensure_weight_tying": False, "lora_dropout": 0.0,
    **dict.fromkeys((
        "alora_invocation_tokens", "arrow_config", "corda_config", "eva_config", "exclude_modules", "kasa_config",
        "layer_replication", "layers_pattern", "layers_to_transform", "lora_ga_config", "megatron_config",
        "modules_to_save", "monteclora_config", "revision", "target_parameters", "trainable_token_indices",
        "use_bdlora", "velora_config",
    )),
}  # fmt: skip
# The hub's pipelines, by PEFT's task types.
PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
}


def save_adapter(
    injected: Any, folder: str | Path, tokenizer: Any = None, findings: Sequence[Finding] | None = None
) -> list[Path]:
    """Write an injected model's adapter with all that a stranger needs; the files written.

    Args:
        injected: what `inject` or `load` gave.
        folder: created where it is not there.
        tokenizer: what the text was tokenised with, chat template included; anything with `save_pretrained`.
        findings: what an analysis found, for README.md.

    Raises:
        InputError: the method's format cannot hold this adapter.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    folder, model, method = Path(folder), injected.model, injected.method
    base, task = name_of(model), task_of(model)
    defaults = LORA_DEFAULTS if method.settings().get("peft_type") == "LORA" else {}
    defaults = {key: value for key, value in defaults.items() if key not in method.settings()}
    about = {"base_model_name_or_path": base or None, "task_type": task[0], "peft_version": PEFT_VERSION}
    if injected.saved:
        defaults.pop("modules_to_save", None)
    adapter = injected.export(**defaults, **about)
    labels = label_names(model)
    with staged(folder, replace=True) as stage:
        io.write(adapter, stage, method.format)
        if task[0] in get_args(TaskType) and base:
            card.write_card(stage, ModelConfig(base, task[0]), labels, model, method.name, {})  # type: ignore[arg-type]
        write_text(stage / "README.md", _readme(injected, adapter, base, task, findings))
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        return [folder / path.relative_to(stage) for path in sorted(stage.rglob("*")) if path.is_file()]


def name_of(model: nn.Module) -> str:
    """What the base was loaded from, a folder by its absolute path; empty of a model made in memory."""
    config: Any = getattr(model, "config", None)
    name = str(getattr(model, "name_or_path", "") or getattr(config, "_name_or_path", "") or "")
    return card.base_name(name) if name else ""


def task_of(model: nn.Module) -> tuple[str | None, str | None]:
    """PEFT's task type and the hub's pipeline, by the model's class; None of another class."""
    name = type(model).__name__
    task = "SEQ_2_SEQ_LM" if name.endswith(CONDITIONAL) else task_of_class(name)
    return task, PIPELINES.get(task or "")


def label_names(model: nn.Module) -> list[str]:
    """The classes' names of a model that classifies, in their order."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not names or task_of(model)[0] not in ("SEQ_CLS", "TOKEN_CLS"):
        return []
    return [str(names[key]) for key in sorted(names)]


def _readme(
    injected: AdaptedModel,
    adapter: Adapter,
    base: str,
    task: tuple[str | None, str | None],
    findings: Sequence[Finding] | None,
) -> str:
    method, count = injected.method, sum(p.numel() for p in injected.trainable().values())
    front = {"base_model": base, "library_name": "peft", "pipeline_tag": task[1], "tags": ["lora", "lorascope"]}
    if method.format != "peft":
        front |= {"library_name": "lorascope"}
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", ""]
    lines += [f"# {method.name} adapter", "", f"- Base model: {f'`{base}`' if base else 'made in memory'}"]
    lines += [f"- Method: {method.name} ({method.paper}), {count:,} parameters in {len(adapter.updates)} modules"]
    if labels := label_names(injected.model):
        lines += ["- Classes, by number: " + ", ".join(f"{i} {name}" for i, name in enumerate(labels))]
    settings = {key: value for key, value in method.settings().items() if not isinstance(value, dict | list)}
    lines += ["- Settings: " + ", ".join(f"{key} {json.dumps(value)}" for key, value in settings.items())]
    lines += ["", "## Load it", "", *_how_to_load(method.format, base, task[0], len(label_names(injected.model)))]
    if findings is not None:
        found = [f"- {one.severity}: {f'{one.module}: ' if one.module else ''}{one.text}" for one in findings]
        lines += ["", "## What `lorascope analyze` finds", "", *(found or ["Nothing that needs a word."])]
    return "\n".join(lines) + "\n"


def _how_to_load(format: str, base: str, task: str | None, classes: int) -> list[str]:
    classed = {
        "CAUSAL_LM": "AutoModelForCausalLM", "SEQ_CLS": "AutoModelForSequenceClassification",
        "TOKEN_CLS": "AutoModelForTokenClassification", "QUESTION_ANS": "AutoModelForQuestionAnswering",
        "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    }.get(task or "", "AutoModel")  # fmt: skip
    more = f", num_labels={classes}" if classes else ""
    lines = ["```python", f"model = {classed}.from_pretrained({base or 'BASE'!r}{more})"]
    if format == "peft":
        return [*lines, 'model = PeftModel.from_pretrained(model, "ADAPTER")  # or', *_OURS]
    return [*lines, *_OURS]


_OURS = ('injected = lorascope.load(model, "ADAPTER")', "```")
