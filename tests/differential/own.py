"""Runs of our own: the held-out loss of the summary, of the run reopened, of the merged folder as transformers loads
it, and of the adapter in PEFT must be one number.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers

from lorascope.adapt import merge
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.models import adapter_base
from lorascope.training import run
from lorascope.training.config import parse
from lorascope.training.parallel import World
from lorascope.training.reopen import reopen
from lorascope.training.scores import evaluate
from lorascope.weights import io
from tests.training.tiny import SPECIAL, WORDS, save_tokenizer, sentences

NO_WEIGHTS = ("prompt", "prefix", "p_tuning_v2", "houlsby")  # they change no weight: nothing can be merged
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2}, "rslora": {"rank": 2}, "lora_plus": {"rank": 2}, "lora_fa": {"rank": 2}, "dora": {"rank": 2},
    "adalora": {"init_r": 3, "target_r": 2}, "lora_xs": {"rank": 2}, "vera": {"rank": 4}, "ia3": {}, "magnitude": {},
    "bitfit": {}, "layernorm": {}, "full": {}, "random_subspace": {"d": 30}, "lora_drop": {"rank": 2},
}  # fmt: skip
TARGETS = {
    "bert": [["query", "value"], ["attention.output.dense"], "all-linear"],
    "gpt2": [["c_attn"], ["attn.c_proj", "mlp.c_proj"], ["attn.c_proj", "lm_head"], "all-linear"],
    "llama": [["q_proj", "v_proj"], "all-linear", ["down_proj", "embed_tokens"]],
}
WHOLE = {"gpt2": [["wte"], ["lm_head"]], "llama": [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]]}


def draw(seed: int) -> dict[str, Any]:
    """One run: the family, whether embeddings are tied, whether the checkpoint lacks its head, the method's section."""
    chance = random.Random(seed)
    family = chance.choice(list(TARGETS))
    name = chance.choice(list(METHODS))
    method: dict[str, Any] = {"name": name, **METHODS[name]}
    if methods.get(name).uses_targets:
        method["targets"] = chance.choice(TARGETS[family])
        embedded = {"embed_tokens", "lm_head"} & {*method["targets"]} if method["targets"] != "all-linear" else set()
        if embedded and name not in ("lora", "rslora", "lora_plus"):
            method["targets"] = TARGETS[family][0]
        if not embedded and family in WHOLE and chance.random() < 0.4:
            method["modules_to_save"] = chance.choice(WHOLE[family])
    tied = family != "bert" and chance.random() < 0.5
    return {"seed": seed, "family": family, "tied": tied, "bare": chance.random() < 0.3, "method": method,
            "bf16": chance.random() < 0.15, "head": chance.choice(["native", "mean-pool"])}  # fmt: skip


def base_of(case: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(case["seed"])
    words = len(SPECIAL + WORDS)
    if case["family"] == "bert":
        config = transformers.BertConfig(
            vocab_size=words, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=64, num_labels=2, initializer_range=0.2,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        model = model.bert if case["bare"] else model
    elif case["family"] == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=words, n_embd=16, n_layer=2, n_head=2, n_positions=64, n_inner=16, eos_token_id=3,
            initializer_range=0.2, tie_word_embeddings=case["tied"],
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=words, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2, eos_token_id=3,
            tie_word_embeddings=case["tied"],
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def config_of(case: dict[str, Any], base: Path, folder: Path) -> Any:
    rows = sentences(32)
    classifies = case["family"] == "bert"
    if classifies:
        data = folder / "rows.jsonl"
        lines = [{"text": text, "label": "yes" if "the" in text.split() else "no"} for text in rows]
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        data = folder / "rows.txt"
        data.write_text("\n".join(rows))
    model = {"name": str(base), "task_type": "SEQ_CLS" if classifies else "CAUSAL_LM"}
    return parse(
        {
            "model": {**model, "head": case["head"]} if classifies else model,
            "data": {"path": str(data), "max_length": 16} if classifies
            else {"path": str(data), "max_length": 16, "packing": False},
            "method": case["method"],
            "optim": {"learning_rate": 2e-2},
            "training": {"max_steps": 4, "per_device_train_batch_size": 4, "device": "cpu", "bf16": case["bf16"],
                         "measure_cost": False},
        }
    )  # fmt: skip


def agree(case: dict[str, Any], folder: Path) -> dict[str, float | str]:
    """The losses of one run, by where they were measured. AssertionError where they differ."""
    base = base_of(case, folder / "base")
    config = config_of(case, base, folder)
    finished = run.train(config, folder / "run", say=lambda note: None)
    expected = finished.score.loss
    again = reopen(folder / "run", "cpu")
    found: dict[str, float | str] = {"summary": expected, "reopened": again.score().loss}
    found["merged"] = _merged(config, finished.adapter, base, folder, again.held_out)
    found["PEFT"] = _in_peft(config, case, finished.adapter, base, again.held_out)
    # In bfloat16 the sum is rounded, and the layers' outputs are not; else one more rounding of W in float32.
    limit = 0.05 if case["bf16"] else 2e-5
    for where, loss in found.items():
        assert isinstance(loss, str) or abs(loss - expected) <= limit * expected, f"{where}: {found}"
    return found


def _loss(model: Any, texts: Any) -> float:
    return evaluate(model, texts, 8, World(torch.device("cpu"))).loss


def _merged(config: Any, adapter: Path, base: Path, folder: Path, texts: Any) -> float | str:
    read = io.read(adapter, adapter_base.checkpoint_of(str(base)))
    dtype = torch.bfloat16 if config.training.bf16 else "auto"
    model, tokenizer = adapter_base.load_base(read, adapter, str(base), dtype)
    done = merge.merge(model, read, adapter_base.seeded(adapter))
    merge.save(model, tokenizer, folder / "merged", done, {})
    lm = config.model.task_type == "CAUSAL_LM"
    auto = transformers.AutoModelForCausalLM if lm else transformers.AutoModelForSequenceClassification
    custom = {"trust_remote_code": True} if config.model.head == "mean-pool" else {}
    return _loss(auto.from_pretrained(folder / "merged", **custom), texts)


def _in_peft(config: Any, case: dict[str, Any], adapter: Path, base: Path, texts: Any) -> float | str:
    from peft import PeftModel

    if "peft_type" not in json.loads((adapter / "adapter_config.json").read_text()):
        return "not in PEFT's layout"
    lm = config.model.task_type == "CAUSAL_LM"
    auto = transformers.AutoModelForCausalLM if lm else transformers.AutoModelForSequenceClassification
    dtype = torch.bfloat16 if case["bf16"] else torch.float32
    model = auto.from_pretrained(base, dtype=dtype)
    if not lm and config.model.head == "mean-pool":
        try:
            PeftModel.from_pretrained(model, adapter)
        except Exception as error:
            return f"refused by PEFT: {type(error).__name__}"
        raise AssertionError("PEFT loads a head on the mean into a class that has none")
    return _loss(PeftModel.from_pretrained(model, adapter), texts)


def refusal(case: dict[str, Any], error: InputError) -> bool:
    """Whether this case may be refused before it is trained."""
    words = str(error)
    return "cannot be both adapted and trained" in words or "cannot adapt" in words or "this one has none" in words
