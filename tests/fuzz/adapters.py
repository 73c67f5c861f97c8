"""Valid adapters of every registered format and every PEFT family that is read, drawn small, and written as files.

A family is a function of one source of chance, a `random.Random`: seeded by the case's number in the long campaign, by
Hypothesis in the quick test, so that both draw from the same files. A registered format without a family is an error.
"""

import contextlib
import copy
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lorascope.errors import InputError
from lorascope.weights.dtypes import SIZES, encode
from lorascope.weights.formats.base import formats
from lorascope.weights.formats.peft.prompts import REASONS
from lorascope.weights.formats.peft.recognise import all_families
from tests.weights.examples import cases

FLOATS = ("F32", "F32", "F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")
STORAGE = ("safetensors", "safetensors", "safetensors", "alone", "pickle", "shards")
PEFT_TYPES = {
    peft_type for family in all_families() for peft_type, of_type in family.peft_types.items() if of_type
} | set(REASONS)  # not those that are refused by name
DRAWN = {
    "LORA",
    "ADALORA",
    "VERA",
    "IA3",
    "LOHA",
    "LOKR",
    "LN_TUNING",
    "TRAINABLE_TOKENS",
    *REASONS,
}  # by families here
_INDEX = ".index.json"


@dataclass
class Tensor:
    """One stored array. `entry` overrides fields of its header entry, or all of it where it is no dict."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes
    entry: Any = field(default_factory=dict)
    stride: tuple[int, ...] | None = None  # in a pickle: claimed of the storage, with `shape`


@dataclass
class Files:
    """An adapter before it is written. Pairs in place of dicts, so that a mutation can name one key twice."""

    format: str
    family: str
    tensors: list[tuple[Any, Tensor]]
    metadata: Any = field(default_factory=dict)
    config: list[tuple[str, Any]] | None = None
    storage: str = "safetensors"
    peft_type: str | None = None
    wrapped: Callable[[dict], Any] = lambda tensors: tensors  # what a pickle holds
    weight_map: Callable[[dict], Any] = lambda names: names  # what an index says


class Raw(str):
    """JSON text that is written as it is."""


# --- drawing ----------------------------------------------------------------------------------------------------------


class Hand:
    """Draws sizes, names and arrays from one source of chance."""

    def __init__(self, chance: random.Random):
        self.chance = chance
        self.rng = np.random.default_rng(chance.getrandbits(16))
        self.dtype = chance.choice(FLOATS)

    def array(self, *shape: int) -> Tensor:
        values = self.rng.standard_normal(shape) * 0.4
        return Tensor(self.dtype, shape, encode(values, self.dtype))

    def number(self, value: float) -> Tensor:
        return Tensor("F32", (), np.float32(value).tobytes())

    def size(self, least: int = 1, most: int = 7) -> int:
        return self.chance.randint(least, most)

    def maybe(self) -> bool:
        return self.chance.random() < 0.5

    def alpha(self) -> float:
        return self.chance.choice([1, 2, 8, 0.5])

    def modules(self, least: int = 1, most: int = 3) -> list[str]:
        names = [f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj", "v")]
        return self.chance.sample(names, self.size(least, most))

    def kernel(self) -> tuple[int, ...]:
        return self.chance.choice([(), (), (3,), (2, 2), (1, 1)])


FAMILIES: dict[str, tuple[str, Callable[[Hand], Files]]] = {}


def family(format: str):
    """Decorator: a function that draws the tensors, config and metadata of one family of `format`."""

    def keep(build):
        FAMILIES[build.__name__] = (format, build)
        return build

    return keep


def draw(chance: random.Random, name: str | None = None) -> Files:
    """A valid adapter of the family, or of any, as one of the sorts of files that hold it."""
    name = name or chance.choice(list(FAMILIES))
    files = FAMILIES[name][1](Hand(chance))
    files.storage = chance.choice(STORAGE)
    if len(files.tensors) < 2 and files.storage == "shards":
        files.storage = "safetensors"
    if files.metadata and files.storage == "pickle":
        files.storage = "safetensors"  # a pickle has no place for it
    return files


# One seed each: if Hypothesis chose every single number, most files would be alike and all would be slow to make.
CHANCE = st.randoms(use_true_random=True)


def adapters(name: str | None = None) -> st.SearchStrategy[Files]:
    """Valid adapters of one family, or of all."""
    return CHANCE.map(lambda chance: draw(chance, name))


def complain_of_gaps() -> None:
    """ValueError where a registered format, or a PEFT type that is read, has no family here."""
    gaps = set(formats.names()) - {format for format, _ in FAMILIES.values()}
    builds = [build for format, build in FAMILIES.values() if format == "peft"]
    gaps |= PEFT_TYPES - {build(Hand(random.Random(n))).peft_type for build in builds for n in range(40)}
    if gaps:
        raise ValueError(f"tests/fuzz/adapters.py draws no adapter of {', '.join(sorted(gaps))}")


# --- PEFT -------------------------------------------------------------------------------------------------------------


def peft(build_name: str, peft_type: str, tensors: dict[str, Tensor], **config: Any) -> Files:
    """`tensors` by their keys below PEFT's prefix."""
    pairs = [(f"base_model.model.{key}", tensor) for key, tensor in tensors.items()]
    fields = {"peft_type": peft_type, "task_type": "CAUSAL_LM", **config}
    return Files("peft", build_name, pairs, {"format": "pt"}, list(fields.items()), peft_type=peft_type)


def targets(hand: Hand, modules: list[str]) -> Any:
    endings = sorted({module.rpartition(".")[2] for module in modules})
    return hand.chance.choice([endings, f".*({'|'.join(endings)})", "all-linear", modules])


@family("peft")
def lora(hand: Hand) -> Files:
    modules, rank, alpha = hand.modules(), hand.size(1, 4), hand.alpha()
    config: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": targets(hand, modules)}
    config["use_rslora"], config["use_dora"] = hand.maybe(), hand.maybe()
    config["init_lora_weights"] = hand.chance.choice([True, False, "pissa", "olora", "gaussian", "pissa_niter_4"])
    config["fan_in_fan_out"], config["bias"] = hand.maybe(), hand.chance.choice(["none", "all", "lora_only"])
    ranks = {}
    if hand.maybe():
        ranks = {hand.chance.choice([modules[0], modules[0].rpartition(".")[2] + "$"]): hand.size(1, 4)}
        config |= {"rank_pattern": ranks, "alpha_pattern": {rf"layers\.\d+\.{modules[-1].rpartition('.')[2]}": 3}}
    name = hand.chance.choice(["", "", ".default"])
    tensors = {}
    for module in modules:
        r = next((r for key, r in ranks.items() if module.endswith(key.rstrip("$"))), rank)
        d_out, kernel = hand.size(), () if config["use_dora"] else hand.kernel()
        tensors[f"{module}.lora_A{name}.weight"] = hand.array(r, hand.size(), *kernel)
        tensors[f"{module}.lora_B{name}.weight"] = hand.array(d_out, r, *(1 for _ in kernel))
        if config["use_dora"]:
            tensors[f"{module}.lora_magnitude_vector{name}" + ".weight" * bool(name)] = hand.array(d_out)
    if hand.maybe():
        tensors["score.modules_to_save.weight" if name else "score.weight"] = hand.array(3, 5)
        config["modules_to_save"] = ["score"]
    return peft("lora", "LORA", tensors, **config)


@family("peft")
def lora_without_config(hand: Hand) -> Files:
    files = lora(hand)
    files.config, files.peft_type = None, None
    return files


@family("peft")
def lora_of_embeddings(hand: Hand) -> Files:
    rank, width = hand.size(1, 3), hand.size()
    tensors = {
        "model.embed_tokens.lora_embedding_A": hand.array(rank, hand.size(4, 9)),
        "model.embed_tokens.lora_embedding_B": hand.array(width, rank),
        "model.layers.0.q.lora_A.weight": hand.array(rank, 6),
        "model.layers.0.q.lora_B.weight": hand.array(5, rank),
        "model.layers.0.q.lora_B.bias": hand.array(5),
        "model.embed_tokens.base_layer.weight": hand.array(9, width),
    }
    names = ["embed_tokens", "q"]
    return peft("lora_of_embeddings", "LORA", tensors, r=rank, lora_alpha=hand.alpha(), target_modules=names)


@family("peft")
def lora_of_experts(hand: Hand) -> Files:
    rank, count = hand.size(1, 2), hand.size(1, 3)
    targeted, tensors = ["experts.gate_up_proj", "experts.down_proj"][: hand.size(1, 2)], {}
    for depth in range(len(targeted)):
        layer = "model.layers.0.mlp.experts" + ".base_layer" * depth
        tensors[f"{layer}.lora_A.weight"] = hand.array(count * rank, hand.size())
        tensors[f"{layer}.lora_B.weight"] = hand.array(hand.size(), count * rank)
    return peft("lora_of_experts", "LORA", tensors, r=rank, lora_alpha=4, target_modules=[], target_parameters=targeted)


@family("peft")
def lora_of_experts_in_three_axes(hand: Hand) -> Files:
    rank, count, tensors = hand.size(1, 2), hand.size(1, 3), {}
    for part in hand.chance.sample(["experts.w1", "experts.w2", "experts.down_proj", "experts.gate_up_proj"], 2):
        shared = hand.chance.choice([(count, count), (1, count), (count, 1)])
        layer, a, b = f"model.layers.0.mlp.{part}", (rank, hand.size()), (hand.size(), rank)
        tensors[f"{layer}.lora_A.weight"] = hand.array(shared[0], *a)
        tensors[f"{layer}.lora_B.weight"] = hand.array(shared[1], *b)
    files = peft("lora_of_experts_in_three_axes", "LORA", tensors, r=rank, lora_alpha=4)
    if hand.maybe():  # Tinker's
        files.config = [pair for pair in files.config if pair[0] in ("r", "lora_alpha")]
    return files


@family("peft")
def lora_of_blocks(hand: Hand) -> Files:
    rank, blocks = hand.size(1, 3), [True, hand.maybe(), hand.maybe()]
    count = sum(blocks)
    tensors = {
        "h.0.c_attn.lora_A.weight": hand.array(count * rank, hand.size()),
        "h.0.c_attn.lora_B.weight": hand.array(count * 4, rank, 1),
    }
    return peft("lora_of_blocks", "LORA", tensors, r=rank, lora_alpha=8, enable_lora=blocks, fan_in_fan_out=True)


@family("peft")
def lora_with_tokens(hand: Hand) -> Files:
    rank, rows = hand.size(1, 3), sorted(hand.chance.sample(range(40), hand.size(1, 3)))
    tensors = {
        "model.layers.0.q.lora_A.weight": hand.array(rank, 6),
        "model.layers.0.q.lora_B.weight": hand.array(5, rank),
        "model.embed_tokens.token_adapter.trainable_tokens_delta": hand.array(len(rows), 6),
    }
    said = {"trainable_token_indices": {"embed_tokens": rows}, "layer_replication": None}
    return peft("lora_with_tokens", "LORA", tensors, r=rank, lora_alpha=8, target_modules=["q"], **said)


@family("peft")
def trainable_tokens(hand: Hand) -> Files:
    rows = list(range(hand.size(1, 4)))
    tensors = {"model.embed_tokens.trainable_tokens_delta": hand.array(len(rows), 6)}
    return peft("trainable_tokens", "TRAINABLE_TOKENS", tensors, token_indices=rows, target_modules=["embed_tokens"])


@family("peft")
def lora_replicated(hand: Hand) -> Files:
    rank, tensors = hand.size(1, 3), {}
    for layer in range(3):
        tensors[f"model.layers.{layer}.q.lora_A.weight"] = hand.array(rank, 6)
        tensors[f"model.layers.{layer}.q.lora_B.weight"] = hand.array(5, rank)
    ranges = [[0, 2], [1, 2]]
    return peft("lora_replicated", "LORA", tensors, r=rank, lora_alpha=2, layer_replication=ranges, target_modules="q")


@family("peft")
def adalora(hand: Hand) -> Files:
    rank, tensors, masks = hand.size(1, 5), {}, {}
    for module in hand.modules():
        kept = hand.size(0, rank)
        tensors[f"{module}.lora_A"], tensors[f"{module}.lora_B"] = hand.array(kept, 6), hand.array(4, kept)
        tensors[f"{module}.lora_E"] = hand.array(kept, 1)
        masks[f"{module}.lora_E"] = [True] * kept + [False] * (rank - kept)
    said = {"init_r": rank, "target_r": 1, "lora_alpha": hand.alpha(), "rank_pattern": masks, "total_step": 10}
    return peft("adalora", "ADALORA", tensors, **said)


@family("peft")
def vera(hand: Hand) -> Files:
    rank, width, d_out, modules = hand.size(1, 4), hand.size(), hand.size(), hand.modules()
    tensors = {}
    for module in modules:
        tensors[f"{module}.vera_lambda_b"], tensors[f"{module}.vera_lambda_d"] = hand.array(d_out), hand.array(rank)
    said = {"r": rank, "projection_prng_key": hand.size(0, 9), "save_projection": hand.maybe()}
    files = peft("vera", "VERA", tensors, target_modules=targets(hand, modules), **said)
    if said["save_projection"]:
        shared = {"base_model.vera_A": hand.array(rank, width), "base_model.vera_B": hand.array(d_out, rank)}
        files.tensors += shared.items()
    if not said["save_projection"] or hand.maybe():
        files.metadata["vera_input_widths"] = json.dumps(dict.fromkeys(modules, width))
    elif len({module.rpartition(".")[2] for module in modules}) > 1:
        files.tensors = [(key, t) for key, t in files.tensors if modules[0] in key or ".vera_" not in key[10:]]
        files.tensors += [pair for pair in shared.items() if pair not in files.tensors]
    return files


@family("peft")
def ia3(hand: Hand) -> Files:
    modules, tensors = hand.modules(), {}
    for module in modules:
        inward = module.endswith("down_proj")
        tensors[f"{module}.ia3_l"] = hand.array(1, hand.size(2)) if inward else hand.array(hand.size(2), 1)
    forward = hand.chance.choice([["down_proj"], r".*\.down_proj"])
    return peft("ia3", "IA3", tensors, target_modules=targets(hand, modules), feedforward_modules=forward)


@family("peft")
def loha(hand: Hand) -> Files:
    rank, tensors = hand.size(1, 3), {}
    for module in hand.modules():
        d_out, d_in, kernel = hand.size(), hand.size(), hand.chance.choice([(), (), (2, 2), (3, 1)])
        for n in "12":
            tensors[f"{module}.hada_w{n}_a"] = hand.array(*((rank, d_out) if kernel else (d_out, rank)))
            tensors[f"{module}.hada_w{n}_b"] = hand.array(rank, d_in)
            if kernel:
                tensors[f"{module}.hada_t{n}"] = hand.array(rank, rank, *kernel)
    return peft("loha", "LOHA", tensors, r=rank, alpha=hand.alpha(), use_effective_conv2d=hand.maybe())


def lokr_roles(hand: Hand, rank: int) -> dict[str, Tensor]:
    a, b, c, d = (hand.size(1, 4) for _ in range(4))
    kernel = hand.chance.choice([(), (), (2, 2)])
    roles = {}
    if hand.maybe():
        roles["lokr_w1"] = hand.array(a, b)
    else:
        roles |= {"lokr_w1_a": hand.array(a, rank), "lokr_w1_b": hand.array(rank, b)}
    if hand.maybe():
        roles["lokr_w2"] = hand.array(c, d, *kernel)
    elif kernel:
        roles |= {"lokr_w2_a": hand.array(rank, c), "lokr_w2_b": hand.array(rank, d)}
        roles["lokr_t2"] = hand.array(rank, rank, *kernel)
    else:
        roles |= {"lokr_w2_a": hand.array(c, rank), "lokr_w2_b": hand.array(rank, d)}
    return roles


@family("peft")
def lokr(hand: Hand) -> Files:
    rank = hand.size(1, 3)
    tensors = {f"{m}.{role}": t for m in hand.modules() for role, t in lokr_roles(hand, rank).items()}
    return peft("lokr", "LOKR", tensors, r=rank, alpha=hand.alpha(), decompose_both=hand.maybe())


@family("peft")
def norms(hand: Hand) -> Files:
    tensors = {f"layers.{n}.norm.ln_tuning_layers.{p}": hand.array(hand.size()) for n in (0, 1) for p in ("weight",)}
    return peft("norms", "LN_TUNING", tensors, target_modules=["norm"])


@family("peft")
def virtual_tokens(hand: Hand) -> Files:
    kind, count = hand.chance.choice(sorted(REASONS)), hand.size(1, 4)
    files = peft("virtual_tokens", kind, {}, num_virtual_tokens=count, token_dim=6, num_layers=1)
    files.tensors = [("prompt_embeddings", hand.array(count, 6))]
    if hand.maybe():
        files.tensors.append(("base_model.score.weight", hand.array(2, 6)))
        files.config += [("modules_to_save", ["score"])]
    return files


# --- the other formats ------------------------------------------------------------------------------------------------


def pair(hand: Hand, kernel: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    rank, up = hand.size(1, 4), (1,) * len(kernel)
    return hand.array(rank, hand.size(), *kernel), hand.array(hand.size(), rank, *up)


def plain(format: str, name: str, tensors: dict[str, Tensor], **metadata: str) -> Files:
    return Files(format, name, list(tensors.items()), metadata)


@family("diffusers")
def diffusers(hand: Hand) -> Files:
    components, tensors, said, rank = hand.chance.sample(["unet", "transformer", "text_encoder"], 2), {}, {}, 3
    spelled = hand.chance.choice([("lora_A", "lora_B"), ("lora.down", "lora.up"), ("lora_linear_layer.down",) * 2])
    down, up = spelled[0], spelled[1] if spelled[0] != spelled[1] else "lora_linear_layer.up"
    for component in components:
        module = f"{component}.blocks.0.attn1.to_q"
        tensors[f"{module}.{down}.weight"] = hand.array(rank, hand.size())
        tensors[f"{module}.{up}.weight"] = hand.array(hand.size(), rank)
        said |= {f"{component}.r": rank, f"{component}.lora_alpha": hand.alpha()}
        said |= {f"{component}.rank_pattern": {}, f"{component}.alpha_pattern": {"to_q": 2.0}}
    if hand.maybe():
        return plain("diffusers", "diffusers", tensors, lora_adapter_metadata=json.dumps(said))
    return plain("diffusers", "diffusers", tensors)


@family("diffusers")
def diffusers_of_2023(hand: Hand) -> Files:
    tensors = {}
    for where in hand.chance.sample(["to_q_lora", "to_out_lora", "to_v.lora"], 2):
        module = "unet.mid_block.attn1." + ("" if where == "to_v.lora" else "processor.") + where
        tensors[f"{module}.down.weight"], tensors[f"{module}.up.weight"] = pair(hand)
    return plain("diffusers", "diffusers_of_2023", tensors)


@family("kohya")
def kohya(hand: Hand) -> Files:
    tensors = {}
    for module in hand.chance.sample(["lora_unet_conv_in", "lora_te1_q_proj", "diffusion_model.blocks.0.q"], 2):
        kernel = hand.kernel()
        down, up = pair(hand, kernel)
        if kernel and hand.maybe():
            rank = up.shape[1]
            down = hand.array(rank, hand.size(), *(1 for _ in kernel))
            tensors[f"{module}.lora_mid.weight"] = hand.array(rank, rank, *kernel)
        tensors[f"{module}.lora_down.weight"], tensors[f"{module}.lora_up.weight"] = down, up
        if hand.maybe():
            tensors[f"{module}.alpha"] = hand.number(hand.alpha())
        if hand.maybe() and not kernel:
            tensors[f"{module}.dora_scale"] = hand.array(up.shape[0], 1)
    said = {"ss_network_dim": "4", "ss_network_args": '{"conv_dim": "3"}', "ss_tag_frequency": "x" * 400}
    return plain("kohya", "kohya", tensors, **(said if hand.maybe() else {}))


@family("lycoris")
def lycoris(hand: Hand) -> Files:
    rank, tensors = hand.size(1, 3), {}
    d_out, d_in = hand.size(), hand.size()
    every: dict[str, dict[str, Tensor]] = {
        "loha": {
            f"hada_w{n}_{s}": hand.array(*((d_out, rank) if s == "a" else (rank, d_in))) for n in "12" for s in "ab"
        },
        "loha_conv": {f"hada_w{n}_{s}": hand.array(rank, d_out if s == "a" else d_in) for n in "12" for s in "ab"}
        | {f"hada_t{n}": hand.array(rank, rank, 2, 2) for n in "12"},
        "lokr": lokr_roles(hand, rank),
        "full": {"diff": hand.array(d_out, d_in, *hand.chance.choice([(), (2, 2)])), "diff_b": hand.array(d_out)},
        "ia3": {"weight": hand.array(d_out), "on_input": hand.number(hand.size(0, 1))},
        "norm": {"w_norm": hand.array(d_out), "b_norm": hand.array(d_out)},
    }
    chosen = hand.chance.sample([name for name in every if name != "norm"], 2) + ["norm"] * hand.maybe()
    for name in chosen:
        tensors |= {f"lycoris_{name}.{suffix}": tensor for suffix, tensor in every[name].items()}
        if name.startswith("lo"):
            tensors[f"lycoris_{name}.alpha"] = hand.number(hand.alpha())
    said = {"ss_network_dim": "3", "ss_network_args": '{"rs_lora": "true"}'} if hand.maybe() else {}
    return plain("lycoris", "lycoris", tensors, **said)


@family("lycoris")
def rotations(hand: Hand) -> Files:
    """What is a function of W: OFT, BOFT, OFTv2, GLoRA, and DoRA on LoHa and LoKr."""
    side, rank, d_in = 2 * hand.size(1, 3), hand.size(1, 3), hand.size()
    loha = {f"hada_w{n}_{s}": hand.array(*((6, rank) if s == "a" else (rank, d_in))) for n in "12" for s in "ab"}
    every: dict[str, dict[str, Tensor]] = {
        "oft": {"oft_blocks": hand.array(3, side, side), "rescale": hand.array(3 * side, 1)},
        "boft": {"oft_blocks": hand.array(2, 2, side, side)},
        "v2": {"oft_R.weight": hand.array(hand.size(1, 3), 6), "oft_R.scaled_oft": hand.number(1)},
        "v2_lengths": {"oft_R.weight": hand.array(3, 3), "dora_scale": hand.array(7, 1)},
        "glora": {f"{name}.weight": hand.array(*shape) for name, shape in {
            "a1": (d_in, rank), "a2": (rank, d_in), "b1": (5, rank), "b2": (rank, d_in)}.items()},
        "doha": {**loha, "dora_scale": hand.chance.choice([hand.array(6, 1), hand.array(1, d_in)])},
        "dokr": {"lokr_w1": hand.array(2, 2), "lokr_w2": hand.array(3, 2), "dora_scale": hand.array(1, 4)},
    }  # fmt: skip
    tensors = {}
    for name in hand.chance.sample(sorted(every), 3):
        tensors |= {f"lora_unet_{name}.{suffix}": tensor for suffix, tensor in every[name].items()}
        if hand.maybe():
            tensors[f"lora_unet_{name}.alpha"] = hand.number(hand.alpha())
    return plain("lycoris", "rotations", tensors)


@family("kohya")
def kohya_parts(hand: Hand) -> Files:
    rank, d_in, tensors = hand.size(1, 3), hand.size(), {}
    for part in range(hand.size(2, 4)):
        tensors[f"lora_unet_q.lora_down.{part}.weight"] = hand.array(rank, d_in)
        tensors[f"lora_unet_q.lora_up.{part}.weight"] = hand.array(hand.size(), rank)
    if hand.maybe():
        tensors["lora_unet_q.alpha"] = hand.number(hand.alpha())
    return plain("kohya", "kohya_parts", tensors)


@family("nunchaku")
def nunchaku(hand: Hand) -> Files:
    rank = 16 * hand.size(1, 2)
    tensors = {
        "transformer_blocks.0.qkv_proj.lora_down": hand.array(16 * hand.size(1, 2), rank),
        "transformer_blocks.0.qkv_proj.lora_up": hand.array(16 * hand.size(1, 3), rank),
        "transformer_blocks.0.norm1.linear.lora_down": hand.array(rank, hand.size()),
        "transformer_blocks.0.norm1.linear.lora_up": hand.array(6 * hand.size(), rank),
    }
    if hand.maybe():
        tensors["proj_out.lora_A.weight"], tensors["proj_out.lora_B.weight"] = pair(hand)
        tensors["proj_out.bias"] = hand.array(3)
    return plain("nunchaku", "nunchaku", tensors)


@family("loralib")
def loralib(hand: Hand) -> Files:
    rank, blocks, tensors = hand.size(1, 3), hand.size(1, 2), {}
    tensors["layers.0.q.lora_A"], tensors["layers.0.q.lora_B"] = hand.array(blocks * rank, 6), hand.array(4, rank)
    tensors["layers.0.q.bias"] = hand.array(4)
    if hand.maybe():
        tensors |= {"conv.lora_A": hand.array(2 * 3, 5 * 3), "conv.lora_B": hand.array(7 * 3, 2 * 3)}
        tensors["conv.conv.weight"] = hand.array(7, 5, 3, 3)
    if hand.maybe():
        tensors |= {"v.lora_A": hand.array(3, 6), "v.lora_B": hand.array(5, 3), "v.lora_E": hand.array(3, 1)}
        tensors["v.ranknum"] = Tensor("F32", (1,), np.float32(3).tobytes())
    return plain("loralib", "loralib", tensors)


@family("loralib")
def adapterhub(hand: Hand) -> Files:
    rank, tensors = hand.size(1, 3), {}
    for layer in (0, 1):
        module = f"bert.encoder.layer.{layer}.query.loras.mine"
        tensors |= {f"{module}.lora_A": hand.array(rank, 6), f"{module}.lora_B": hand.array(4, rank)}
    files = plain("loralib", "adapterhub", tensors)
    config = {"architecture": "lora", "r": rank, "alpha": hand.alpha(), "composition_mode": "add"}
    files.config = [("config", config), ("hidden_size", 6), ("model_class", "BertModel"), ("name", "mine")]
    return files


@family("nemo")
def nemo(hand: Hand) -> Files:
    one = "model.language_model.encoder.layers.0.self_attention.adapter_layer.lora_kqv_adapter"
    module = hand.chance.choice([one, "decoder.layers.0.self_attention.linear_qkv.adapter"])
    inner, outer = pair(hand)
    return plain("nemo", "nemo", {f"{module}.linear_in.weight": inner, f"{module}.linear_out.weight": outer})


@family("torchtune")
def torchtune(hand: Hand) -> Files:
    tensors = {}
    for module in hand.chance.sample(["layers.0.attn.q_proj", "layers.1.mlp.w1", "output"], 2):
        a, b = pair(hand)
        tensors[f"{module}.lora_a.weight"], tensors[f"{module}.lora_b.weight"] = a, b
        if hand.maybe():
            tensors[f"{module}.magnitude"] = hand.array(b.shape[0])
    return plain("torchtune", "torchtune", tensors)


@family("mlx")
def mlx(hand: Hand) -> Files:
    rank, tensors = hand.size(1, 4), {}
    for module in hand.modules():
        d_in, d_out, experts = hand.size(), hand.size(), hand.size(1, 3)
        if hand.maybe():
            tensors[f"{module}.lora_a"], tensors[f"{module}.lora_b"] = hand.array(d_in, rank), hand.array(rank, d_out)
            if hand.maybe():
                tensors[f"{module}.m"] = hand.array(d_out)
        else:
            tensors[f"{module}.lora_a"] = hand.array(experts, rank, d_in)
            tensors[f"{module}.lora_b"] = hand.array(experts, d_out, rank)
    scale = {"rank": rank, "scale": hand.alpha()} if hand.maybe() else {"rank": rank}
    said = [("fine_tune_type", "lora"), ("num_layers", 2), ("lora_parameters", scale)]
    return Files("mlx", "mlx", list(tensors.items()), {"format": "mlx"}, said)


@family("mlx")
def mlx_whole_weights(hand: Hand) -> Files:
    tensors = {f"{module}.weight": hand.array(hand.size(), hand.size()) for module in hand.modules()}
    tensors["model.norm.weight"] = hand.array(4)
    return Files("mlx", "mlx", list(tensors.items()), {}, [("fine_tune_type", "full"), ("num_layers", 2)])


@family("gguf")
def gguf(hand: Hand) -> Files:
    """The keys alone: the container's own damage is drawn in tests/weights/test_gguf.py."""
    rank, tensors = hand.size(1, 4), {}
    for part in hand.chance.sample(["blk.0.attn_q", "blk.1.attn_k", "blk.0.ffn_down", "blk.0.ffn_up_exps"], 2):
        experts = (hand.size(1, 3),) if part.endswith("exps") else ()
        tensors[f"{part}.weight.lora_a"] = hand.array(*experts, rank, hand.size())
        tensors[f"{part}.weight.lora_b"] = hand.array(*experts, hand.size(), rank)
    if hand.maybe():
        tensors["token_embd.weight.lora_a"] = hand.array(hand.size(), rank)
        tensors["token_embd.weight.lora_b"] = hand.array(hand.size(), rank)
    said = {"general.type": "adapter", "general.architecture": hand.chance.choice(["llama", "qwen3moe", "falcon"])}
    return Files("gguf", "gguf", list(tensors.items()), {**said, "adapter.lora.alpha": str(hand.alpha())})


@family("bottlenecks")
def bottlenecks(hand: Hand) -> Files:
    width, inner, place = hand.size(), hand.size(), "bert.encoder.layer.0.output.adapters.sst"
    tensors = {
        f"{place}.adapter_down.0.weight": hand.array(inner, width),
        f"{place}.adapter_up.bias": hand.array(width),
    }
    config = [("config", {"architecture": None, "reduction_factor": 4}), ("name", "sst")]
    return Files("bottlenecks", "bottlenecks", list(tensors.items()), {}, config if hand.maybe() else None)


def own_record(tensors: dict[str, Tensor], **more: Any) -> Files:
    record = {"format": "lorascope", "schema": 1, "method": "test", "settings": {"r": 3}, "notes": ["by hand"]}
    record |= {"modules": {}, "saved": [], "parts": {}, **more}
    metadata = {"format": "lorascope", "schema": "1"}
    return Files("lorascope", "own", list(tensors.items()), metadata, list(record.items()))


def shapes_of_kind(hand: Hand, name: str, chosen: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes that the kind takes: drawn, and where none of a few draws divides as it must, those of its contract."""
    from lorascope.updates.base import kinds
    from tests.contracts.test_kinds import SIZES

    kind = kinds.get(name)
    symbols = sorted({symbol for role in kind.roles.values() for symbol in role.shape})
    for _ in range(10):
        sizes = {symbol: 1 if symbol == "1" else hand.size(1, 6) for symbol in symbols}
        shapes = {role: tuple(sizes[symbol] for symbol in kind.roles[role].shape) for role in chosen}
        with contextlib.suppress(InputError):
            kind.dimensions(shapes)
            return shapes
    return {role: tuple(SIZES[symbol] for symbol in kind.roles[role].shape) for role in chosen}


@family("lorascope")
def own(hand: Hand) -> Files:
    """One or two kinds of update, each with sizes of its own, and what else there may be."""
    from lorascope.updates.base import kinds
    from tests.contracts.test_kinds import CHOICES

    modules, tensors = {}, {}
    for name in hand.chance.sample(kinds.names(), hand.size(1, 2)):
        chosen = hand.chance.choice(CHOICES.get(name, [tuple(kinds.get(name).roles)]))
        arrays = {role: hand.array(*shape) for role, shape in shapes_of_kind(hand, name, chosen).items()}
        modules[f"layers.0.{name}"] = {"kind": name, "scale": hand.alpha(), "roles": list(arrays)}
        tensors |= {f"updates.layers.0.{name}.{role}": array for role, array in arrays.items()}
    more = {"modules": modules}
    if hand.maybe():
        tensors |= {"saved.head.weight": hand.array(2, 4), "parts.prompt": hand.array(5, 8)}
        more |= {"saved": ["head.weight"], "parts": {"prompt": "a soft prompt"}}
    return own_record(tensors, **more)


@family("lorascope")
def own_drawn(hand: Hand) -> Files:
    """Frozen projections that are given by their draw."""
    rank, d_in, d_out = hand.size(1, 3), hand.size(), hand.size()
    draws = {
        "A": {"shape": [rank, d_in], "bound": 0.5, "seed": 7},
        "B": {"shape": [d_out, rank], "bound": 1, "seed": 2},
    }
    entry = {"kind": "vera", "scale": 1.0, "roles": ["A", "B", "d", "b"], "drawn": draws, "transposed": hand.maybe()}
    tensors = {"updates.q.d": hand.array(rank), "updates.q.b": hand.array(d_out)}
    return own_record(tensors, modules={"q": entry})


@family("lorascope")
def own_subspace(hand: Hand) -> Files:
    """Updates that a few coordinates and a seed give."""
    from lorascope.linalg.fastfood import fingerprint

    rows, columns, groups = hand.size(2, 5), hand.size(2, 5), hand.maybe()
    plan = {
        "projection": hand.chance.choice(["dense", "fastfood"]),
        "scope": hand.chance.choice(["global", "per-tensor"]),
    }
    plan |= {"columns": 3, "seed": 9, "parameters": [["q.weight", [rows, columns]], ["q.bias", [rows]]]}
    plan |= {"groups": [0, 1] if groups else [], "fingerprint": fingerprint()}
    about = {"index": 0, "shape": [rows, columns], "turned": False}
    entry = {"kind": "dense", "scale": 1.0, "roles": ["delta"], "projected": {"delta": about}}
    parts = {"subspace.theta": "coordinates"} | ({"subspace.lambda": "coordinates"} if groups else {})
    tensors = {"parts.subspace.theta": hand.array(3)} | ({"parts.subspace.lambda": hand.array(2)} if groups else {})
    return own_record(tensors, modules={"q": entry}, parts=parts, subspace=plan)


# --- formats and PEFT types without a family of their own ------------------------------------------------------------


def _take_examples() -> None:
    """Make the example files of a format, or a PEFT type, that has no family above into one each."""
    formats_without = set(formats.names()) - {format for format, _ in FAMILIES.values()}
    types_without = PEFT_TYPES - DRAWN
    for format, builder in cases() if formats_without or types_without else ():
        if format in formats_without or (format == "peft" and types_without):
            with tempfile.TemporaryDirectory() as folder:
                files = _of_file(format, builder.__name__, builder(Path(folder)).path)
            if format in formats_without or files.peft_type in types_without:
                FAMILIES[files.family] = (format, lambda hand, files=files: copy.deepcopy(files))


def _of_file(format: str, name: str, path: Path) -> Files:
    """A safetensors file, with the config next to it, as what is drawn."""
    weights = next(path.glob("*.safetensors")) if path.is_dir() else path
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = []
    for key, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        tensors.append((key, Tensor(entry["dtype"], tuple(entry["shape"]), content[begin:end])))
    config = weights.parent / "adapter_config.json"
    pairs = list(json.loads(config.read_text()).items()) if config.exists() else None
    return Files(format, f"{format}_{name}", tensors, metadata, pairs, peft_type=dict(pairs or []).get("peft_type"))


_take_examples()


# --- writing ----------------------------------------------------------------------------------------------------------


def write(files: Files, folder: Path) -> Path:
    """Write the adapter into an empty folder; what is to be given to the reader."""
    if files.config is not None:
        (folder / "adapter_config.json").write_text(json_object(files.config))
    if files.storage == "pickle":
        return _write_pickle(files, folder)
    if files.storage == "shards":
        return _write_shards(files, folder)
    path = folder / ("adapter_model.safetensors" if files.config is not None else "a.safetensors")
    path.write_bytes(safetensors(files.tensors, files.metadata))
    return path if files.storage == "alone" else folder


def safetensors(tensors: list[tuple[Any, Tensor]], metadata: Any) -> bytes:
    """The bytes of a safetensors file, its entries as the mutations want them."""
    pairs, position = [("__metadata__", metadata)] if metadata else [], 0
    for key, tensor in sorted(tensors, key=lambda pair: -SIZES.get(pair[1].dtype, 1)):
        end = position + len(tensor.data)
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        pairs.append((key, entry | tensor.entry if isinstance(tensor.entry, dict) else tensor.entry))
        position = end
    header = json_object(pairs).encode()
    body = b"".join(tensor.data for _, tensor in sorted(tensors, key=lambda pair: -SIZES.get(pair[1].dtype, 1)))
    return len(header).to_bytes(8, "little") + header + body


def json_object(pairs: list[tuple[Any, Any]]) -> str:
    """A JSON object in which a key may stand twice."""
    return "{" + ", ".join(f"{json.dumps(str(key))}: {json_text(value)}" for key, value in pairs) + "}"


def json_text(value: Any) -> str:
    """JSON, in which `Raw` text stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return json_object(list(value.items()))
    if isinstance(value, list):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return json.dumps(value)


def as_torch(tensor: Tensor) -> Any:
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
             "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool"}  # fmt: skip
    dtype = getattr(torch, names.get(tensor.dtype, "uint8"))
    values = torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8) if tensor.data else torch.empty(0).byte()
    flat = values[: len(values) // dtype.itemsize * dtype.itemsize].view(dtype)
    try:
        return flat.as_strided(tensor.shape, tensor.stride) if tensor.stride else flat.reshape(tensor.shape)
    except RuntimeError:  # shapes that a mutation has made too large for torch itself to hold
        return flat


def _write_pickle(files: Files, folder: Path) -> Path:
    import torch

    path = folder / ("adapter_model.bin" if files.config is not None else "a.pt")
    torch.save(files.wrapped({key: as_torch(tensor) for key, tensor in files.tensors}), path)
    return folder if files.config is not None else path


def _write_shards(files: Files, folder: Path) -> Path:
    half = len(files.tensors) // 2
    names = {}
    for number, tensors in enumerate((files.tensors[:half], files.tensors[half:]), 1):
        name = f"adapter_model-0000{number}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors(tensors, files.metadata))
        names |= {str(key): name for key, _ in tensors}
    (folder / f"adapter_model.safetensors{_INDEX}").write_text(json_text({"weight_map": files.weight_map(names)}))
    return folder
