"""Names of modules and parameters: what wrappers put into them, taken out again.

torch.compile, DDP, DeepSpeed, FSDP and activation checkpointing each wrap a module in another, whose attribute then
stands in the key of every tensor below: `model._orig_mod.layers.0._checkpoint_wrapped_module.q_proj.weight`.
"""

import re
from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.updates.base import Stored

# By whom: torch.compile; FSDP; torch's activation checkpointing and offloading; Lightning Fabric; FSDP before torch 2.
ALWAYS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module")
OUTSIDE = "module"  # DDP, DataParallel, DeepSpeed, AveragedModel: around a whole model or component
WRAPPERS = (*ALWAYS, OUTSIDE)
_PEFT = "base_model.model."


def unwrapped(name: str) -> str:
    """A module's path, or a parameter's key, without the segments that wrappers have put into it.

    `module` is also what models call layers of their own (LeViT: `stages.0.layers.1.module.keys`), so it goes only
    where a wrapper puts it: before the first numbered segment, or next to another wrapper.
    """
    segments = name.split(".")
    if not any(segment in WRAPPERS for segment in segments):
        return name
    first_number = next((i for i, segment in enumerate(segments) if segment.isdecimal()), len(segments))

    def stays(i: int, segment: str) -> bool:
        if segment in ALWAYS:
            return False
        neighbours = {*segments[max(i - 1, 0) : i], *segments[i + 1 : i + 2]} & set(ALWAYS)
        return segment != OUTSIDE or not (neighbours or i < first_number)

    return ".".join(segment for i, segment in enumerate(segments) if stays(i, segment))


def without_wrappers(tensors: Mapping[str, Stored], where: object = "") -> tuple[dict[str, Stored], tuple[str, ...]]:
    """Tensors by key without wrappers' segments, and what to say of it.

    `P.base_model.model.X`, of a PeftModel that stands within another model, is `base_model.model.P.X`.

    Raises:
        InputError: two keys differ by a wrapper alone.
    """
    renamed: dict[str, Stored] = {}
    changed = 0
    for key, stored in tensors.items():
        name = _outer_prefix(unwrapped(key))
        if name in renamed:
            raise InputError(f"{where}: two keys mean the same", found=f"{name!r}, of which one is {key!r}")
        renamed[name] = stored
        changed += name != key
    wrappers = "wrappers' segments (torch.compile, DDP, FSDP and the like)"
    note = f"{wrappers} were taken out of {changed} of {len(renamed)} names"
    return renamed, ((note,) if changed else ())


def _outer_prefix(key: str) -> str:
    """PEFT's prefix in front of everything, once."""
    before, inner, rest = key.rpartition(_PEFT)
    if not inner or not before or not before.endswith("."):
        return key
    return _PEFT + before.replace(_PEFT, "") + rest


# What a model's own class may put in front of the paths of what it wraps: transformers' `base_model_prefix`, by which
# the checkpoints of a bare model and of one with a head differ, and the few wrappers that do the same. A word that
# tells two parts of one model apart (encoder, decoder, text_model, vision_model, transformer_2) is none of them.
_ROOTS = """
    model transformer bert roberta electra deberta distilbert albert mpnet longformer camembert xlm_roberta
    mobilebert squeezebert nomic_bert convbert roformer rembert layoutlm layoutlmv2 layoutlmv3 markuplm lilt luke
    esm ernie big_bird bigbird nystromformer ibert funnel fnet canine led data2vec_text roberta_prelayernorm
    splinter gte gpt_neox gpt_neox_japanese gptj biogpt rwkv backbone reformer prophetnet vit deit beit swin
    swinv2 dinov2 convnext convnextv2 resnet wav2vec2 hubert wavlm sew unispeech audio_spectrogram_transformer
    data2vec_audio videomae timesformer vivit timm_model auto_model base_model
"""
ROOTS = frozenset(_ROOTS.split())
COMPONENTS = ("transformer", "transformer_2", "unet", "text_encoder", "text_encoder_2", "text_encoder_3", "controlnet",
              "prior", "vae", "image_encoder", "diffusion_model")  # fmt: skip
_RENAMED = (("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head."))
_OWNERS = ("block_sparse_moe", "mlp")
_ROUTED = re.compile(rf"\.({'|'.join(_OWNERS)})(?=\.(?:experts|gate)(?:\.|$))")


def plain(name: str) -> str:
    """A module's path, or a parameter's key, without what wrappers and PEFT put around it."""
    return unwrapped(name).removeprefix(_PEFT)


# Words that tell two parts of one model, or two models of one pipeline, apart.
PARTS = frozenset(
    (*COMPONENTS, "encoder", "decoder", "text_model", "vision_model", "audio_model", "language_model", "vision_tower",
     "audio_tower", "visual", "thinker", "talker", "question_encoder", "ctx_encoder", "generator", "discriminator")
) - {"transformer"}  # fmt: skip


def within(name: str, most: int = 3) -> list[str]:
    """`name` without one, two, ... leading components, as long as these name no part of a model and a layer is left."""
    tails = []
    components = name.split(".")
    for k in range(1, min(most, len(components) - 2) + 1):
        if components[k - 1] in PARTS or components[k - 1].isdecimal():
            break
        tails.append(".".join(components[k:]))
    return tails


def rootless(name: str) -> list[str]:
    """`name` without its root, then without the next, as long as the leading component is one and others remain."""
    rests = []
    root, dot, rest = name.partition(".")
    while dot and root in ROOTS and "." in rest:
        rests.append(rest)
        root, dot, rest = rest.partition(".")
    return rests


def renamed(name: str) -> list[str]:
    """Other spellings that transformers has had for the same parameter: a vision-language model's text model, the
    experts and the router of Mixtral."""
    pairs = (*_RENAMED, *((new, old) for old, new in _RENAMED))
    spelled = [new + name.removeprefix(old) for old, new in pairs if name.startswith(old)]
    if routed := _ROUTED.search(name):
        spelled += [f"{name[: routed.start()]}.{one}{name[routed.end() :]}" for one in _OWNERS if one != routed[1]]
    return spelled


def without_component(name: str, folder: str) -> str | None:
    """The path within a pipeline's component that the folder of that name holds; None where it is of another one.

    Another folder's name takes the names of the first component of a kind: `transformer.`, not `transformer_2.`.
    """
    component, _, rest = name.partition(".")
    if component not in COMPONENTS or not rest:
        return None
    if folder in COMPONENTS:
        return rest if component == folder else None
    return None if component[-1:].isdigit() else rest
