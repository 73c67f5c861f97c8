"""A draw: a tiny model, a PEFT method with its options, a dtype; trained for two steps by PEFT alone."""

import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

WIDTH = 16
TOKENS = 40


@dataclass(frozen=True)
class Draw:
    """Everything that a case depends on; its repr is a script's argument."""

    seed: int
    family: str
    tied: bool = False
    grown: int = 0
    dtype: str = "float32"
    method: str = "lora"
    options: dict[str, Any] = field(default_factory=dict)

    def script(self) -> str:
        """What reproduces this draw."""
        return (
            "from pathlib import Path\nfrom tempfile import mkdtemp\n"
            "from tests.differential.agree import agree\nfrom tests.differential.draws import Draw\n\n"
            f"agree({self!r}, Path(mkdtemp()))\n"
        )


FAMILIES = ("bert", "gpt2", "llama", "t5", "mixtral", "gpt_oss", "vit")
LINEAR = {
    "bert": ["query", "value", "attention.output.dense"],
    "gpt2": ["c_attn", "attn.c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "t5": ["q", "v", "wo"],
    "mixtral": ["q_proj", "v_proj"],
    "gpt_oss": ["q_proj", "o_proj"],
    "vit": ["q_proj", "v_proj", "query", "value"],
}
EMBEDDING = {"bert": "word_embeddings", "gpt2": "wte", "llama": "embed_tokens", "mixtral": "embed_tokens"}
EXPERTS = {"mixtral": "mlp.experts", "gpt_oss": "mlp.experts"}
TASK = {"bert": "SEQ_CLS", "vit": None, "t5": "SEQ_2_SEQ_LM"}
CAUSAL = ("gpt2", "llama", "mixtral", "gpt_oss")


def draw(seed: int) -> Draw:
    """The draw of that seed. Options that PEFT itself refuses are drawn again."""
    chance = random.Random(seed)
    family = chance.choice(FAMILIES)
    method = chance.choices(
        ["lora", "ia3", "loha", "lokr", "vera", "adalora", "ln"], [14, 2, 1, 1, 2, 2, 1 if family != "vit" else 0]
    )[0]
    tied = family in ("gpt2", "llama") and chance.random() < 0.5
    grown = chance.choice([0, 0, 0, 3]) if family in ("llama", "gpt2") else 0
    dtype = "bfloat16" if chance.random() < 0.2 else "float32"
    options = _options(chance, family, method, tied, grown)
    return Draw(seed, family, tied, grown, dtype, method, options)


def _options(chance: random.Random, family: str, method: str, tied: bool, grown: int) -> dict[str, Any]:
    targets = chance.sample(LINEAR[family], chance.randint(1, len(LINEAR[family])))
    if family == "vit":
        targets = LINEAR["vit"]  # whichever of the names this version of transformers has
    options: dict[str, Any] = {"target_modules": targets}
    if method == "ln":
        return {"target_modules": {"bert": ["LayerNorm"], "gpt2": ["ln_1", "ln_2"], "t5": ["layer_norm"]}.get(
            family, ["input_layernorm"])}  # fmt: skip
    if method == "ia3":
        return {**options, "feedforward_modules": [t for t in targets if t in ("down_proj", "c_fc", "wo")]}
    options["r"] = chance.choice([1, 2, 4])
    if method == "vera":
        return {**options, "target_modules": targets[:1], "save_projection": chance.random() < 0.5}
    if method == "adalora":
        return {"target_modules": targets, "init_r": 4, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1,
                "deltaT": 1}  # fmt: skip
    if method in ("loha", "lokr"):
        return {**options, "alpha": chance.choice([1, 4, 8])}
    return {**options, **_lora(chance, family, tied, grown, targets)}


def _lora(chance: random.Random, family: str, tied: bool, grown: int, targets: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {"lora_alpha": chance.choice([1, 3, 8])}
    plain = True
    if family in EXPERTS and chance.random() < 0.7:
        down, up = (f"{EXPERTS[family]}.{name}" for name in ("down_proj", "gate_up_proj"))
        chosen = {"target_modules": chance.choice([[], targets])}
        return {**options, **chosen, "target_parameters": chance.choice([[down], [up], [up, down]])}
    if chance.random() < 0.3:
        options["use_rslora"] = True
    kind = chance.choice(
        ["plain", "plain", "dora", "bias_of_b", "pissa", "olora", "patterns", "tokens", "whole", "head"]
    )
    if kind == "dora":
        options["use_dora"] = True
    elif kind == "bias_of_b" and family in ("gpt2", "bert", "vit"):
        options["lora_bias"] = True
    elif kind in ("pissa", "olora") and not (kind == "olora" and family == "gpt2"):
        options["init_lora_weights"] = kind
    elif kind == "patterns":
        options |= {"rank_pattern": {targets[0]: 3}, "alpha_pattern": {targets[-1]: 5}}
    elif kind == "tokens" and family in EMBEDDING and not grown:
        options["trainable_token_indices"] = {EMBEDDING[family]: [1, 5, 7]}
        plain = False
    elif kind == "whole" and family in EMBEDDING:
        options["modules_to_save"] = chance.choice([[EMBEDDING[family]], ["lm_head"], [EMBEDDING[family], "lm_head"]])
        if family == "bert":
            options["modules_to_save"] = ["word_embeddings"]
        plain = False
    elif kind == "head" and family in ("llama", "gpt2", "mixtral"):
        options["target_modules"] = [*targets, "lm_head"]
        plain = False
    if plain and family in EMBEDDING and chance.random() < 0.2 and "init_lora_weights" not in options:
        options["target_modules"] = [*targets, EMBEDDING[family]]
        options.pop("lora_bias", None)
    embedded = {*options.get("modules_to_save", ()), *options.get("trainable_token_indices", ())}
    embedded |= {*options.get("target_modules", targets)} & {"embed_tokens", "wte", "lm_head"}
    if tied and embedded and chance.random() < 0.4:
        options["ensure_weight_tying"] = True
    if family != "vit" and chance.random() < 0.15:
        options["layers_to_transform"] = [1]
    if "lora_bias" not in options and chance.random() < 0.2:
        options["bias"] = chance.choice(["all", "lora_only"])
    return options


# --- what PEFT makes of it --------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A trained PEFT model on disk, and what it computes."""

    folder: Path
    auto: Any
    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor
    live: Any

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def model_of(draw: Draw) -> Any:
    """A random model of the family. Sides are chosen square where a shape should not tell the orientation."""
    import transformers as t

    torch.manual_seed(draw.seed)
    lm: dict[str, Any] = {"vocab_size": TOKENS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wide: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    head = {"tie_word_embeddings": draw.tied, "initializer_range": 0.3}
    square = draw.seed % 2 == 0
    if draw.family == "bert":
        config = t.BertConfig(vocab_size=TOKENS, intermediate_size=24, max_position_embeddings=32, num_labels=3,
                              initializer_range=0.3, **wide)  # fmt: skip
        return t.BertForSequenceClassification(config)
    if draw.family == "gpt2":
        config = t.GPT2Config(
            n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32, n_inner=WIDTH if square else 24, **lm, **head
        )
        return t.GPT2LMHeadModel(config)
    if draw.family == "llama":
        config = t.LlamaConfig(
            intermediate_size=24, num_key_value_heads=1, max_position_embeddings=32, **wide, **lm, **head
        )
        return t.LlamaForCausalLM(config)
    if draw.family == "t5":
        config = t.T5Config(vocab_size=TOKENS, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                            decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)  # fmt: skip
        model = t.T5ForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape) + (parameter.ndim == 1))
        return model
    if draw.family == "mixtral":
        config = t.MixtralConfig(intermediate_size=WIDTH if square else 24, num_key_value_heads=1, num_local_experts=3,
                                 num_experts_per_tok=2, max_position_embeddings=32, **wide, **lm, **head)  # fmt: skip
        return t.MixtralForCausalLM(config)
    if draw.family == "gpt_oss":
        experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8, "num_key_value_heads": 1}
        inner = WIDTH if square else 24
        config = t.GptOssConfig(intermediate_size=inner, max_position_embeddings=32, **experts, **wide, **lm, **head)
        return t.GptOssForCausalLM(config)
    config = t.ViTConfig(intermediate_size=24, image_size=8, patch_size=4, num_labels=3, initializer_range=0.3, **wide)
    return t.ViTForImageClassification(config)


def inputs_of(draw: Draw) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(draw.seed)
    if draw.family == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, TOKENS + draw.grown, (2, 6), generator=generator)
    ids[0, :3] = torch.tensor([1, 5, 7])
    return {"input_ids": ids, **({"labels": ids} if draw.family == "t5" else {})}


def config_of(draw: Draw) -> Any:
    import peft

    cls = {"lora": peft.LoraConfig, "ia3": peft.IA3Config, "loha": peft.LoHaConfig, "lokr": peft.LoKrConfig,
           "vera": peft.VeraConfig, "adalora": peft.AdaLoraConfig, "ln": peft.LNTuningConfig}[draw.method]  # fmt: skip
    task = "CAUSAL_LM" if draw.family in CAUSAL else TASK[draw.family]
    options = dict(draw.options)
    if draw.family == "gpt2" and draw.method in ("lora", "ia3", "vera", "adalora"):
        options["fan_in_fan_out"] = True
    if draw.method == "ia3" and not options["feedforward_modules"]:
        options["feedforward_modules"] = []
    return cls(task_type=task, **options)


def train(draw: Draw, folder: Path) -> Trained | None:
    """Two steps of PEFT's own layers; None where PEFT refuses the draw."""
    import peft

    model = model_of(draw).to(getattr(torch, draw.dtype))
    model.save_pretrained(folder / "base")
    if draw.grown:
        torch.manual_seed(draw.seed + 1)
        model.resize_token_embeddings(TOKENS + draw.grown, mean_resizing=False)
    inputs = inputs_of(draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            live = peft.get_peft_model(model, config_of(draw))
            _step(live, inputs, draw)
            live.save_pretrained(folder / "adapter", save_embedding_layers=bool(draw.grown) or "auto")
        except (ValueError, NotImplementedError, TypeError, RuntimeError):
            return None
    live.eval()
    with torch.no_grad():
        logits = live(**inputs).logits.double()
    if not bool(torch.isfinite(logits).all()):
        return None
    return Trained(folder, type(model), inputs, logits, live)


def _step(live: Any, inputs: dict[str, torch.Tensor], draw: Draw) -> None:
    """Two optimiser steps, then noise on what training hardly moves, so that nothing is at its start."""
    trained = [p for name, p in live.named_parameters() if p.requires_grad and "ranknum" not in name]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    for _ in range(2):
        logits = live(**inputs).logits
        logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    generator = torch.Generator().manual_seed(draw.seed + 7)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter))
