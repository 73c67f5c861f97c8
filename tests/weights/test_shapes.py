"""One module of each dialect, and the same with one tensor of another shape or without it: what is read is in
`shapes.txt`, and the rest is refused."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.updates.base import dense
from tests.weights.example import base_of, read_arrays
from tests.weights.peft_tuners import test_settings as peft

D_OUT, D_IN = 24, 12
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LITGPT = "n_head: 4\nn_query_groups: 2\nn_embd: 12\n"
LAYER = "decoder.layers.0"
NEMO, DORA = {"linear_in.weight": (3, D_IN), "linear_out.weight": (D_OUT, 3)}, {"weight_magnitude": (D_OUT,)}
BASE = {
    "up": (D_OUT, D_IN), "self_attn.q_proj": (12, 12), "self_attn.k_proj": (6, 12), "self_attn.v_proj": (6, 12),
    "self_attn.o_proj": (D_OUT, 12), "mlp.gate_proj": (12, 12), "mlp.up_proj": (12, 12),
}  # fmt: skip
# The tensors, where everything of one module begins with "up." unless a name says more; what lies next to them.
DIALECTS = {
    "nunchaku": ({"blocks.0.up.lora_down": (16, 32), "blocks.0.up.lora_up": (48, 32)}, {}),
    "nunchaku norm": ({"blocks.0.norm.linear.lora_down": (5, 8), "blocks.0.norm.linear.lora_up": (12, 5)}, {}),
    "nunchaku plain": (
        {"up.lora_A.weight": (3, D_IN), "up.lora_B.weight": (D_OUT, 3), "up.bias": (D_OUT,),
         "b.lora_up": (16, 16), "b.lora_down": (16, 16)},
        {},
    ),
    "nemo": (
        {f"{LAYER}.self_attention.linear_qkv.adapter.{key}": shape for key, shape in {**NEMO, **DORA}.items()},
        {"run_config.yaml": "peft:\n  dim: 3\n  alpha: 6\n"},
    ),
    "nemo without magnitude": (
        {f"{LAYER}.self_attention.linear_qkv.adapter.{key}": shape for key, shape in NEMO.items()},
        {},
    ),
    "nemo fc1": ({f"{LAYER}.mlp.linear_fc1.adapter.{key}": shape for key, shape in NEMO.items()}, {}),
    "nemo proj": ({f"{LAYER}.self_attention.linear_proj.adapter.{key}": shape for key, shape in NEMO.items()}, {}),
    "nemo up": ({f"{LAYER}.mlp.linear_fc1.adapter.adapter_up.{key}": shape for key, shape in NEMO.items()}, {}),
    "kohya": ({"up.lora_down.weight": (3, D_IN), "up.lora_up.weight": (D_OUT, 3), "up.alpha": ()}, {}),
    "kohya dora": ({"up.lora_down.weight": (3, D_IN), "up.lora_up.weight": (D_OUT, 3), "up.dora_scale": (24, 1)}, {}),
    "kohya dora of inputs": (
        {"up.lora_down.weight": (3, D_IN), "up.lora_up.weight": (D_OUT, 3), "up.dora_scale": (1, 12)},
        {},
    ),
    "kohya convolution": (
        {"up.lora_down.weight": (3, 5, 1, 1), "up.lora_mid.weight": (4, 3, 2, 2), "up.lora_up.weight": (24, 4, 1, 1)},
        {},
    ),
    "kohya parts": (
        {"up.lora_down.0.weight": (3, D_IN), "up.lora_up.0.weight": (8, 3), "up.lora_down.1.weight": (3, D_IN),
         "up.lora_up.1.weight": (16, 3)},
        {},
    ),
    "lycoris loha": (
        {"up.hada_w1_a": (24, 3), "up.hada_w1_b": (3, 12), "up.hada_w2_a": (24, 3), "up.hada_w2_b": (3, 12)},
        {},
    ),
    "lycoris loha tucker": (
        {"up.hada_w1_a": (3, 24), "up.hada_w1_b": (3, 5), "up.hada_w2_a": (3, 24), "up.hada_w2_b": (3, 5),
         "up.hada_t1": (3, 3, 2, 2), "up.hada_t2": (3, 3, 2, 2)},
        {},
    ),
    "lycoris lokr": ({"up.lokr_w1": (4, 3), "up.lokr_w2_a": (6, 5), "up.lokr_w2_b": (5, 4), "up.alpha": ()}, {}),
    "lycoris lokr tucker": (
        {"up.lokr_w1": (4, 3), "up.lokr_w2_a": (5, 6), "up.lokr_w2_b": (5, 2), "up.lokr_t2": (5, 5, 2, 2)},
        {},
    ),
    "lycoris lokr whole": ({"up.lokr_w1": (4, 3), "up.lokr_w2": (6, 4)}, {}),
    "lycoris full": ({"up.diff": (24, 12), "up.diff_b": (24,)}, {}),
    "lycoris ia3": ({"up.weight": (24, 1), "up.on_input": ()}, {}),
    "lycoris oft": ({"up.oft_blocks": (6, 4, 4), "up.rescale": (24, 1), "up.alpha": ()}, {}),
    "lycoris boft": ({"up.oft_blocks": (2, 6, 4, 4), "up.rescale": (24, 1)}, {}),
    "lycoris oft parts": ({"up.oft_blocks.0": (2, 4, 4), "up.oft_blocks.1": (4, 4, 4), "up.alpha": ()}, {}),
    "lycoris oft v2": (
        {"up.oft_R.weight": (3, 6), "up.dora_scale": (24, 1), "up.initial_norm": (24, 1), "up.oft_R.scaled_oft": ()},
        {},
    ),
    "lycoris glora": (
        {"up.a1.weight": (12, 3), "up.a2.weight": (3, 12), "up.b1.weight": (24, 3), "up.b2.weight": (3, 12)},
        {},
    ),
    "loralib": ({"up.lora_A": (3, D_IN), "up.lora_B": (D_OUT, 3)}, {}),
    "loralib blocks": ({"up.lora_A": (6, D_IN), "up.lora_B": (D_OUT, 3)}, {}),
    "loralib convolution": ({"up.lora_A": (6, 10), "up.lora_B": (48, 6), "up.weight": (24, 5, 2, 2)}, {}),
    "loralib adalora": ({"up.lora_A": (3, D_IN), "up.lora_B": (D_OUT, 3), "up.lora_E": (3, 1), "up.ranknum": ()}, {}),
    "loralib litgpt": (
        {"transformer.h.0.attn.qkv.lora_A": (6, 12), "transformer.h.0.attn.qkv.lora_B": (18, 3)},
        {"hyperparameters.yaml": "lora_r: 3\nlora_alpha: 6\n", "model_config.yaml": LITGPT},
    ),
    "mlx": (
        {"up.lora_a": (D_IN, 3), "up.lora_b": (3, D_OUT), "up.m": (D_OUT,)},
        {"adapter_config.json": json.dumps({"lora_parameters": {"scale": 2.0}})},
    ),
    "mlx experts": (
        {"switch_mlp.up.lora_a": (4, 3, D_IN), "switch_mlp.up.lora_b": (4, D_OUT, 3)},
        {"adapter_config.json": json.dumps({"lora_parameters": {"scale": 2.0}})},
    ),
    "diffusers": (
        {"unet.up.lora_A.weight": (3, D_IN), "unet.up.lora_B.weight": (D_OUT, 3), "unet.up.alpha": ()},
        {},
    ),
    "diffusers dora": (
        {"unet.up.lora_A.weight": (3, D_IN), "unet.up.lora_B.weight": (D_OUT, 3),
         "unet.up.lora_magnitude_vector": (D_OUT, 1)},
        {},
    ),
    "diffusers convolution": (
        {"unet.up.lora.down.weight": (3, 5, 2, 2), "unet.up.lora.up.weight": (D_OUT, 3, 1, 1)},
        {},
    ),
    "jax": ({"up.w_lora_a": (D_IN, 3), "up.w_lora_b": (3, 6, 4)}, {}),
    "torchtune": ({"up.lora_a.weight": (3, D_IN), "up.lora_b.weight": (D_OUT, 3), "up.magnitude": (24,)}, {}),
}  # fmt: skip


def damaged(shape):
    """Shapes that are not this one, by one step, or by an axis without entries."""
    for axis, size in enumerate(shape):
        if size > 1 and len(shape) > 1:  # a file with an empty vector is refused before, as the shell of a shard
            yield (*shape[:axis], 0, *shape[axis + 1 :])
        yield (*shape[:axis], size + 1, *shape[axis + 1 :])
        yield (*shape[:axis], size - 1, *shape[axis + 1 :])
    yield shape[1:]
    yield (1, *shape)
    if len(shape) > 1:
        yield (*shape, 1)
    if shape[::-1] != shape:
        yield shape[::-1]


def without(part, key):
    return {name: value for name, value in part.items() if name != key}


def read(folder, tensors, others):
    rng = np.random.default_rng(0)
    arrays = {key: np.asarray(np.abs(rng.standard_normal(shape)), "f4") for key, shape in tensors.items()}
    for name, text in others.items():
        (folder / name).write_text(text)
    config = json.loads(others["adapter_config.json"]) if "adapter_config.json" in others else None
    base = {f"{f'model.layers.0.{name}' if '.' in name else name}.weight": shape for name, shape in BASE.items()}
    weights = {key: np.ones(shape, "f4") for key, shape in base.items()}
    return read_arrays(arrays, config, base_of(weights, HEADS), folder)


def outcome(reading):
    """Kind and shape of the update (of its roles, where the base says it), whether the base stores it the other way
    round, and how many tensors were skipped or saved; "" where the file is refused."""
    words = []
    try:
        adapter = reading()
        for update in adapter.updates.values():
            assert update.needs_base or dense(update.delta()).shape == update.shape
    except InputError:
        return ""
    for update in adapter.updates.values():
        shapes = [role.shape for role in update.roles.values()]
        if not update.needs_base:
            shapes = [(*update.shape, *update.kernel)]
        words += [update.name.rpartition(".")[2], update.kind, *("×".join(map(str, shape)) for shape in shapes)]
        words += ["transposed"] * update.transposed + ["embedding"] * update.embedding
    aside = len(adapter.skipped) + len(adapter.saved)
    return " ".join([*words, *([f"and {aside} aside"] if aside else [])])


def changed(tensors):
    """What is changed, and the tensors after it."""
    yield "as it is", tensors
    for key, shape in tensors.items():
        for other in damaged(shape):
            yield f"{key} {'×'.join(map(str, other)) or 'one number'}", {**tensors, key: other}
        if len(tensors) > 1:
            yield f"without {key}", without(tensors, key)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_read_of_other_shapes(dialect, tmp_path):
    tensors, others = DIALECTS[dialect]
    found = []
    for change, these in changed(tensors):
        if result := outcome(partial(read, tmp_path, these, others)):
            found.append(f"{change}: {result}")
    assert found == READ[dialect]


@pytest.mark.parametrize("tuner", peft.TUNERS)
def test_what_is_read_of_other_shapes_of_peft_s(tuner):
    """With the base's weight; as it is without one, too, and with one that is stored the other way round."""
    config, own, shared = peft.TUNERS[tuner]
    config = {"peft_type": tuner.partition(" ")[0], **config}
    found = []
    for change, these in changed(own | shared):
        parts = [{key: shape for key, shape in these.items() if key in part} for part in (own, shared)]
        bases = {"": (D_OUT, D_IN), ", no base": None, ", base turned": (D_IN, D_OUT)}
        for where, base in bases.items() if change == "as it is" else [("", (D_OUT, D_IN))]:
            if result := outcome(partial(peft.read, config, *parts, base)):
                found.append(f"{change}{where}: {result}")
    assert found == READ[tuner]


def words(text, count=6):
    """The first words of a sentence, without the numbers of versions."""
    return " ".join(text.split()[:count])


def said(reading):
    """Method, scales, notes, reasons and names of what is kept, in a few words each; "" where it is refused."""
    try:
        adapter = reading()
    except InputError:
        return ""
    yielded = [adapter.source.method]
    for update in adapter.updates.values():
        of_base = f" of {update.base_weight}" if update.base_weight else ""
        yielded.append(f"{update.name}{of_base} {update.scale:.6g}")
        yielded += [f"({words(note)})" for note in update.notes]
    yielded += [f"note: {words(note)}" for note in adapter.notes]
    yielded += [f"skipped {item.name}: {words(item.reason)}" for item in adapter.skipped]
    yielded += [f"kept {name}: {words(adapter.non_weight_tensors.get(name, '-'))}" for name in adapter.saved]
    return "; ".join(yielded)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_said(dialect, tmp_path):
    """With the files that lie next to it, and without them."""
    tensors, others = DIALECTS[dialect]
    found = [said(partial(read, tmp_path, tensors, others))]
    found += [f"alone: {said(partial(read, tmp_path / 'far/far/away', tensors, {}))}"] if others else []
    assert found == SAID[dialect]


@pytest.mark.parametrize("tuner", peft.TUNERS)
def test_what_is_said_of_peft_s(tuner):
    """Of a tuner with its config, without it, and with the config but without the base."""
    config, own, shared = peft.TUNERS[tuner]
    config = {"peft_type": tuner.partition(" ")[0], **config}
    found = [said(partial(peft.read, config, own, shared))]
    for what, given, base in (("bare", None, (D_OUT, D_IN)), ("no base", config, None)):
        if result := said(partial(peft.read, given, own, shared, base)):
            found += [f"{what}: {result}"] if result != found[0] else [f"{what}: the same"]
    assert found == SAID[tuner]


def _written(name: str) -> dict[str, list[str]]:
    """`shapes.txt`: below each dialect's name what is read, and of what; `said.txt`: what is said of it."""
    parts = (Path(__file__).parent / name).read_text().strip().split("\n\n")
    return {name: lines for name, *lines in (part.splitlines() for part in parts)}


READ, SAID = _written("shapes.txt"), _written("said.txt")
