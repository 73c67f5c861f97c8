"""The families of PEFT's files: each a function that draws one."""

import json
from typing import Any

from lorascope.weights.formats.peft.prompts import REASONS
from tests.fuzz.drawing import Files, Hand, Tensor, family


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
