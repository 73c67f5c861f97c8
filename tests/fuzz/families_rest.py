"""The families of the formats that are not PEFT's, lorascope's own among them: each a function that draws one."""

import contextlib
import json
from typing import Any

import numpy as np

from lorascope.errors import InputError
from tests.fuzz.drawing import Files, Hand, Tensor, family
from tests.fuzz.families_peft import lokr_roles


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
