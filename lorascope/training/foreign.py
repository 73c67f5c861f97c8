"""Adapters that were trained elsewhere (PEFT, TRL, transformers' Trainer), opened as finished runs are: on a base model
and on data that are named, since their files say neither fully.

What the files do say is the default: the task and the base by `adapter_config.json`, the tokenizer that the trainer
left, the classes' names by the base's config.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from lorascope.adapt.model_parameters import ModelParameters, in_model_layout
from lorascope.architectures import TIED_TO_LM_HEAD
from lorascope.architectures.classes import task_of_class
from lorascope.errors import InputError, preview
from lorascope.models import adapter_base, assets
from lorascope.models import loading as models
from lorascope.models.card import read_card
from lorascope.models.config import ModelConfig, TaskType
from lorascope.models.dequantised import as_numbers
from lorascope.run_data import FULL, RunFacts
from lorascope.training import data
from lorascope.training.batches import Encoded
from lorascope.training.config import DataConfig, MethodConfig, RunConfig, TrainingConfig
from lorascope.training.given import NOTHING, Given
from lorascope.training.parallel import World, pick_device
from lorascope.training.reopen import Reopened, finished_config, reopen, with_adapter
from lorascope.training.rows import PACKAGED, READERS, Row, first_rows, load_rows, read_file
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.tensors import reshaped
from lorascope.weights.tuned import adapter_or_model

LONGEST = 1024  # tokens of a text, where neither tokenizer nor model has less: SFTConfig's default
BATCH = {"SEQ_CLS": 64, "CAUSAL_LM": 4}  # texts of one pass; logits over a vocabulary are large
ALL_TOKENS = "the loss is over all tokens of a text, prompts included"
_FIELD = re.compile(r"\{(\w+)\}")
_CHATS = ("messages", "conversations", "conversation")


def open_evaluated(
    path: str | Path,
    given: Given = NOTHING,
    device: str = "auto",
    split: str | None = None,
    max_samples: int | None = None,
) -> Reopened:
    """The folder of a run, of an adapter in a run, or of an adapter that was trained elsewhere, ready to be evaluated.

    A run's own files say everything; `given` is for other adapters, and for a run on other data.

    Raises:
        InputError: the folder holds neither, the data are not named, or they do not fit the model.
    """
    path, name = io.one_of(Path(path), given.adapter_name)
    given = replace(given, adapter_name=name)
    run = _run_of(path)
    if run is not None and given.data is None:
        _check_base(run, given)
        opened = reopen(run, device, split, max_samples)
        return opened if _adapter_of(path) == run / "adapter" else _another(opened, path)
    if run is None and given.data is None:
        io.check_exists(path)
        if not _is_adapter(path):
            finished_config(path)  # which says why it is no finished run
        raise InputError(
            f"{path} is an adapter, and nothing says what it is to be evaluated on",
            found="no run of `lorascope train` around it",
            hint="pass --data FILE, and --base MODEL where its config does not name one",
        )
    return open_adapter(path, given, device, split, max_samples)


def _check_base(run: Path, given: Given) -> None:
    if given.adapter_name is not None:
        raise InputError(f"{run} is a run, which holds one adapter", hint="leave --adapter-name out")
    name = finished_config(run).model.name
    if given.base is not None and assets.resolve(given.base) != assets.resolve(name):
        raise InputError(
            f"{run} is evaluated on the base that it was trained on",
            found=given.base, expected=name, hint="leave --base out, or name other data with --data",
        )  # fmt: skip


def _adapter_of(path: Path) -> Path:
    return io.adapter_folder(path)


def _is_adapter(path: Path) -> bool:
    return path.is_file() or any(path.glob("adapter*"))


def _run_of(path: Path) -> Path | None:
    """The folder of our own finished run that the path is, or lies in; None where there is none."""
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "config.yaml").is_file() and (folder / "summary.json").is_file() and folder.is_dir():
            return folder
    return None


def _another(opened: Reopened, path: Path) -> Reopened:
    """The same run with another of its adapters in the model: a snapshot."""
    opened.put({})
    return with_adapter(replace(opened, folder=path, adapter=io.read(path)))


def open_adapter(
    path: Path, given: Given, device: str = "auto", split: str | None = None, max_samples: int | None = None
) -> Reopened:
    """An adapter's folder on the base and the data that are given; see `open_evaluated`."""
    here = World(pick_device(device))
    base = given.base or adapter_base.base_named(path)
    checkpoint = adapter_base.checkpoint_of(base)
    adapter = _adapter_or_tuned(path, checkpoint, given.adapter_name)
    task = _task(path, adapter, given, base)
    adapter = replace(adapter, settings={**adapter.settings, "task_type": task})
    import torch

    decoded = as_numbers(checkpoint, base, "float32")
    model, of_base = adapter_base.load_base(adapter, _adapter_of(path), base, torch.float32, checkpoint)
    model = model.to(here.device)
    tokenizer = models.tokenizer_beside(_adapter_of(path)) or of_base
    if tokenizer is None:
        raise InputError(f"neither {path} nor {base} has a tokenizer")
    config = _config(path, adapter, given, base, task, _longest(given, tokenizer, model))
    rows = first_rows(_rows(config.data, split), max_samples, 0)
    texts, notes = _encoded(rows, config, given, tokenizer, model, _adapter_of(path))
    notes = (decoded, *notes) if decoded else notes
    return with_adapter(Reopened(
        path, config, adapter, model, texts, texts, tokenizer, here, {}, notes, f"texts of {config.data.path}"
    ))  # fmt: skip


def _adapter_or_tuned(path: Path, base: Checkpoint | None, adapter_name: str | None) -> Adapter:
    """An adapter; of a full model that was tuned, what differs from the base, weight by weight."""
    tuned = adapter_or_model(path, base, adapter_name)
    if isinstance(tuned, Adapter):
        return tuned
    assert base is not None  # without one, a full model is refused
    updates, saved = {}, {}
    for name in tuned.names():
        stored, weight = tuned.stored[name], base.find(name)
        if weight is None or tuple(weight.shape) != tuple(stored.shape):
            saved[name] = stored
        elif len(stored.shape) in (1, 2) and not np.array_equal(stored.read(), weight.read()):
            module = name.removesuffix(".weight")
            shape = (*stored.shape, 1)[:2]
            roles = {"tuned": reshaped(stored, *shape)}
            updates[module] = Update(module, "tuned", roles, base_weight=name)
    if tied := _tied_head(tuned, updates):
        updates["lm_head"] = tied
    if not updates:
        raise InputError(f"{path} is its base: no weight of it differs", hint="give the tuned model")
    return Adapter(updates, {}, Source(str(path), None, "checkpoint", FULL, files=tuned.tensors.files), saved)


def _tied_head(tuned: Checkpoint, updates: Mapping[str, Update]) -> Update | None:
    """The update of an output head that is the input embedding, which merging one at a time would leave as it was."""
    embedding = next((update for name, update in updates.items() if name.endswith(TIED_TO_LM_HEAD)), None)
    if embedding is None or "lm_head.weight" in tuned.stored or not tuned.config.get("tie_word_embeddings"):
        return None
    return replace(embedding, name="lm_head", base_weight="lm_head.weight")


def facts_of_adapter(path: Path, label: str, given: Given) -> RunFacts:
    """What a comparison of runs knows of an adapter, or a tuned model, that was trained elsewhere."""
    path, name = io.one_of(path, given.adapter_name)
    base = given.base or adapter_base.base_named(path)
    adapter = _adapter_or_tuned(path, adapter_base.checkpoint_of(base), name)
    rank = max((update.rank or 0 for update in adapter.updates.values()), default=0) or None
    count = sum(math.prod(stored.shape) for update in adapter.updates.values() for stored in update.roles.values())
    count += sum(math.prod(stored.shape) for stored in adapter.saved.values())
    task: dict[str, dict[str, Any]] = {"model": {"name": base}, "data": {"path": given.data}}
    method = FULL if adapter.source.method == FULL else adapter.source.method.lower()
    return RunFacts(label, str(path), method, {}, {}, {}, task, 0, rank, None, count, None, None)


def _task(path: Path, adapter: Adapter, given: Given, base: str) -> TaskType:
    """InputError where it is not one that is evaluated here."""
    task = given.task or adapter.settings.get("task_type")
    if task is None and (card := read_card(path)) is not None:
        task = card["model"]["task_type"]
    if task is None:
        named = getattr(models.load_config(base), "architectures", None) or ()
        task = next(filter(None, (task_of_class(str(name)) for name in named)), None)
    if task not in get_args(TaskType):
        raise InputError(
            f"{path} is of a task that is not evaluated here" if task else f"nothing says what task {path} is of",
            found=task, expected=" or ".join(get_args(TaskType)), hint=None if task else "pass --task",
        )  # fmt: skip
    return cast(TaskType, task)


def _longest(given: Given, tokenizer: Any, model: Any) -> int:
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = [LONGEST, getattr(tokenizer, "model_max_length", LONGEST), *([positions] if positions else [])]
    return given.max_length or int(min(limits))


def _config(path: Path, adapter: Adapter, given: Given, base: str, task: TaskType, longest: int) -> RunConfig:
    """What a run's config would say of this adapter, as far as evaluating it needs."""
    columns = {
        key: value
        for key in ("text_column", "text_pair_column", "label_column")
        if (value := getattr(given, key)) is not None
    }
    where = DataConfig(path=given.data or "", max_length=longest, packing=False, **columns)
    method = MethodConfig(adapter.source.method or "adapter", tuple(adapter.updates), None, None)
    card = read_card(path)
    model = ModelConfig(base, task, card["model"]["head"] if card else "native")
    return RunConfig(model, where, method, training=TrainingConfig(per_device_eval_batch_size=BATCH[task]))


def _rows(config: DataConfig, split: str | None) -> Sequence[Row]:
    path = Path(config.path)
    rows: Sequence[Row]
    if config.path not in PACKAGED and (path.is_file() or path.suffix.lower() in READERS):
        if split is not None:
            raise InputError("--split is of a dataset with splits", found=str(path), hint="name another file")
        rows = read_file(Path(config.eval_path or path))
    else:
        rows = load_rows(replace(config, eval_split=split or config.eval_split), 0)[1]
    if not rows:
        raise InputError(f"{config.path} has no rows")
    return rows


def _encoded(
    rows: Sequence[Row], config: RunConfig, given: Given, tokenizer: Any, model: Any, folder: Path
) -> tuple[Encoded, tuple[str, ...]]:
    where = config.data
    if config.model.task_type == "CAUSAL_LM":
        texts, chat = _texts(rows, where, given, tokenizer)
        ends = replace(where, add_bos_token=False, add_eos_token=False) if chat else where  # a template has its own
        return data.encode_lm(texts, tokenizer, ends), (ALL_TOKENS,)
    if given.template is not None:
        raise InputError("--template is for a language model", hint="name the columns with --text-column")
    names = _class_names(rows, where, given, model, folder)
    return data.encode_classes(rows, names, tokenizer, where), ()


def _class_names(rows: Sequence[Row], config: DataConfig, given: Given, model: Any, folder: Path) -> tuple[str, ...]:
    """The classes in the order of the head's outputs."""
    count = int(model.config.num_labels)
    found = data.label_names(rows, config)
    card = read_card(folder)
    id2label = getattr(model.config, "id2label", None) or {}
    named = tuple(str(id2label.get(i, id2label.get(str(i)))) for i in range(count))
    candidates = [given.labels, tuple(card["labels"]) if card else None, named, tuple(map(str, range(count)))]
    for names in candidates if given.labels is None else candidates[:1]:
        if names and len(names) == count and set(found) <= set(names):
            return names
    raise InputError(
        f"the labels of {config.path} are not the model's classes",
        found=preview(found), expected=preview(given.labels or named),
        hint=f"name the {count} classes in the order of the head with --labels a,b,...",
    )  # fmt: skip


def _texts(rows: Sequence[Row], config: DataConfig, given: Given, tokenizer: Any) -> tuple[list[str], bool]:
    """What a language model is evaluated on, and whether it is a conversation by the chat template."""
    if given.template is not None:
        return [_filled(given.template, row, i, config.path) for i, row in enumerate(rows, 1)], False
    first = rows[0]
    chat = next((name for name in _CHATS if isinstance(first.get(name), list)), None)
    if given.text_column is None and not isinstance(first.get(config.text_column), str):
        if chat is not None:
            return [_conversation(row.get(chat), tokenizer, i, config.path) for i, row in enumerate(rows, 1)], True
        if {"prompt", "completion"} <= first.keys():
            parts = [[*_messages(row["prompt"]), *_messages(row["completion"])] for row in rows if row.get("prompt")]
            if isinstance(first["prompt"], list):
                return [_conversation(each, tokenizer, i, config.path) for i, each in enumerate(parts, 1)], True
            return [f"{row.get('prompt')}{row.get('completion')}" for row in rows], False
    for i, row in enumerate(rows, 1):
        if not isinstance(row.get(config.text_column), str):
            raise InputError(
                f"row {i} of {config.path} has no text in the column {config.text_column!r}",
                found=f"the columns {preview(row, 10)}",
                hint='name the column with --text-column, or write --template "{a} {b}" with the columns in it',
            )
    return [row[config.text_column] for row in rows], False


def _messages(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _filled(template: str, row: Row, number: int, path: str) -> str:
    """The template with {column} replaced by the row's value; nothing else in it has a meaning."""
    if not (names := _FIELD.findall(template)):
        raise InputError("--template names no column", found=template[:60], expected='"{question} {answer}"')
    if lacking := [name for name in names if row.get(name) is None]:
        raise InputError(
            f"row {number} of {path} has no {lacking[0]!r} for --template", found=f"the columns {preview(row, 10)}"
        )
    return _FIELD.sub(lambda match: str(row[match[1]]), template)


def _conversation(messages: Any, tokenizer: Any, number: int, path: str) -> str:
    """One conversation in the words of the tokenizer's chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{path} holds conversations, and the tokenizer has no chat template", hint="write --template")
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        raise InputError(f"row {number} of {path} holds no conversation", found=repr(messages)[:60])
    spelled = [
        {"role": each["from"].replace("human", "user").replace("gpt", "assistant"), "content": each.get("value", "")}
        if isinstance(each.get("from"), str)
        else dict(each)
        for each in messages
    ]
    try:
        return tokenizer.apply_chat_template(spelled, tokenize=False)
    except Exception as error:  # the template is code of its author's, in jinja's sandbox
        raise InputError(f"row {number} of {path} does not fit the chat template", found=str(error)[:200]) from None


def checkpoint_scorer(
    paths: Sequence[str | Path],
    given: Given,
    device: str = "auto",
    max_samples: int | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[Callable[[int], dict[str, float]], str]:
    """A function that scores the checkpoint of an index, and in words what it scores on. One model holds all in turn.

    Raises:
        InputError: as of `open_evaluated`.
    """
    opened = open_evaluated(paths[-1], given, device, max_samples=max_samples)
    for note in opened.notes:
        on_note(note)
    whole = _saved_whole(opened)

    def score(index: int) -> dict[str, float]:
        _put(opened, io.read(paths[index], None, given.adapter_name), whole, Path(paths[index]))
        scored = opened.score()
        return {"loss": scored.loss, "accuracy": scored.accuracy}

    return score, opened.held_out_texts


def _saved_whole(opened: Reopened) -> list[str]:
    """The names of the parameters that the adapter stores whole: a head, biases."""
    named = dict(opened.model.named_parameters(remove_duplicate=False))
    return [name for name in opened.adapter.saved if name in named]


def _put(opened: Reopened, read: Adapter, whole: Collection[str], path: Path) -> None:
    """Another checkpoint of the same run in the model: its ΔW, its head and biases."""
    import torch

    adapter = in_model_layout(ModelParameters(opened.model), read)
    if adapter.updates.keys() != opened.updates.keys() or not set(whole) <= adapter.saved.keys() or adapter.rows:
        names = sorted(adapter.updates.keys() ^ opened.updates.keys()) or sorted(adapter.saved)
        raise InputError(f"{path} does not hold what the last checkpoint holds", found=preview(names, 3))
    opened.put({
        name: update.delta(opened.base_weight(name) if update.needs_base else None)
        for name, update in adapter.updates.items()
    })  # fmt: skip
    named = dict(opened.model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in whole:
            named[name].copy_(torch.from_numpy(adapter.saved[name].read()).to(named[name]).reshape(named[name].shape))
