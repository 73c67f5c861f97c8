"""diffusers: `unet.….lora_A.weight` of today, and the `.processor.to_q_lora.down.weight` of 2023.

Today's files put a component in front (`unet.`, `transformer.`, `text_encoder.`) and may carry PEFT's config of each
component in the safetensors metadata, `lora_adapter_metadata`: r, lora_alpha, patterns, use_rslora, as PEFT means them.
Without it, and without `.alpha` tensors, alpha is the rank and the scale 1, which is how diffusers loads such files
(`get_peft_kwargs`, diffusers 0.42). Older spellings, all of the same pair A (r, d_in) and B (d_out, r):

    ….attn1.processor.to_q_lora.down.weight      ….attn1.to_q.lora.down.weight
    text_encoder.….q_proj.lora_linear_layer.down.weight

Next to a pair OneTrainer's files for ComfyUI keep `.dora_scale`, ai-toolkit's `.magnitude`: DoRA, as in `kohya.py`.

A module's name is its path in the pipeline, the component first.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorascope.errors import InputError
from lorascope.inputs import parse_json
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats import kohya
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import (
    KeyGroup,
    alpha_scale,
    comfy_extras,
    is_packed,
    kernel_of,
    low_rank_roles,
)
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.recognise import read_config
from lorascope.weights.leftovers import changes_delta, modules_of
from lorascope.weights.support import Support
from lorascope.weights.tensors import reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

METADATA = "lora_adapter_metadata"
COMPONENTS = ("unet.", "transformer.", "transformer_2.", "text_encoder", "controlnet.", "diffusion_model.")
SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_SPELLINGS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight",
        r"(?P<module>.+)\.lora_(?P<side>down|up)\.weight",  # of a file that has both
        # XLabs
        r"(?P<module>(?:.+\.)?(?:double|single)_blocks\.\d+\.processor\.\w+_lora\d*)\.(?P<side>down|up)\.weight",
        r"(?P<module>.+)\.lora(?:_linear_layer)?\.(?P<side>down|up)\.weight",
        r"(?P<module>.+?)(?:\.processor)?\.(?P<projection>\w+)_lora\.(?P<side>down|up)\.weight",
        r"(?P<module>.+?)(?:\.processor)?\.(?P<projection>\w+)_lora\.(?P<other>alpha)",
        r"(?P<module>.+?)(?:\.lora(?:_linear_layer)?)?\.(?P<other>alpha)",
        r"(?P<module>.+)\.(?P<other>lora_magnitude_vector)(?:\.weight)?",
        r"(?P<module>.+)\.(?P<other>dora_scale|magnitude)",
        r"(?P<module>.+)\.(?P<other>lora_B(?:\.default)?\.bias)",
    )
)
_XLABS = re.compile(r"(.+\.)?(double|single)_blocks\.\d+\.processor\.\w+_lora\d*")
_IN_TEXT_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
NORM = re.compile(r"(.+\.)?([^.]+_)?norm[^.]*\.(weight|bias|scale)")
B_BIAS = "the bias of B: it adds scale · bias to the output, and is not an update of the weight"
NO_ALPHA = "no alpha in the file: scale 1 (alpha is the rank), as diffusers loads it"


class Diffusers(Format):
    name = "diffusers"
    about = "LoRA of diffusers pipelines, old and new"

    def claims(self, bundle: Bundle) -> bool:
        if (bundle.config is not None and "peft_type" in bundle.config) or kohya.claimed_by_lycoris(bundle.tensors):
            return False
        return is_diffusers(bundle.tensors, bundle.metadata)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        settings = Settings.of(bundle.metadata)
        groups = _groups(bundle.tensors)
        updates = {module: _update(group, ledger, settings) for module, group in groups.items()}
        bare = [] if settings.raw else [module for module, group in groups.items() if "alpha" not in group]
        saved = comfy_extras(ledger)
        adapted = modules_of(ledger.taken)
        norms = [key for key in ledger.left() if NORM.fullmatch(key) and not changes_delta(key, adapted)]
        saved |= {key: ledger.take(key) for key in norms}
        return Parsed(
            updates=updates,
            method=_method(updates, settings),
            settings=settings.raw,
            saved=saved,
            notes=(f"{NO_ALPHA}: {len(bare)} of {len(groups)} modules",) if bare else (),
        )


def is_diffusers(keys: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether a file without a config of PEFT's is of this dialect: by its spelling, its names, or its alphas."""
    keys = list(keys)
    if is_packed(keys):
        return False
    if any(re.search(r"(\.lora|_lora\d*|\.lora_linear_layer)\.(down|up)\.weight$", key) for key in keys):
        return True
    if kohya.of_two_spellings(keys):
        return True
    new = [key for key in keys if re.search(r"\.lora_[AB](\.default)?\.weight$", key)]
    if new and any(key.endswith(".alpha") for key in keys):  # PEFT keeps alpha in its config
        return True
    if any(key.startswith("base_model.") for key in new):
        return False
    return bool(new) and (METADATA in metadata or all(key.startswith(COMPONENTS) for key in new))


@dataclass(frozen=True)
class Settings:
    """`lora_adapter_metadata`: PEFT configs by component; the component "" is a file of one model's own."""

    raw: Mapping[str, Any]
    configs: Mapping[str, Config]

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Settings":
        """InputError where the metadata is there and is not what diffusers writes."""
        if METADATA not in metadata:
            return cls({}, {})
        try:
            raw = parse_json(metadata[METADATA])
        except ValueError as error:
            raise InputError(f"{METADATA} in the file's metadata is not valid JSON", found=error) from None
        if not isinstance(raw, dict):
            raise InputError(f"{METADATA} in the file's metadata is not a JSON object", found=type(raw).__name__)
        components = [key.removesuffix("r").removesuffix(".") for key in raw if key == "r" or key.endswith(".r")]
        return cls(raw, {component: _config(raw, component) for component in components})

    def find(self, module: str) -> tuple[Config, str] | None:
        """The config that covers a module, and the module's path within that component."""
        for component, config in self.configs.items():
            if not component:
                return config, module
            if module.startswith(component + "."):
                return config, module.removeprefix(component + ".")
        return None

    def scale(self, module: str, rank: int) -> float:
        """α/r or α/√r with PEFT's patterns; 1 where nothing covers the module. InputError where the ranks differ."""
        config_and_path = self.find(module)
        if config_and_path is None:
            return 1.0
        config, path = config_and_path
        if config.rank_of(path) != rank:
            raise InputError(
                f"{METADATA} contradicts the tensors of {module}",
                found=f"r {config.rank_of(path)}",
                expected=f"r {rank}",
            )
        return config.scale_of(path, rank)


def _config(raw: Mapping[str, Any], component: str) -> Config:
    prefix = component + "." if component else ""
    values = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
    try:
        return read_config({"peft_type": "LORA", **values})
    except InputError as error:
        what = error.what.replace("adapter_config.json", f"{METADATA} ({component or 'the model'})")
        raise InputError(what, found=error.found, expected=error.expected, hint=error.hint) from None


def _groups(tensors: Mapping[str, Stored]) -> dict[str, KeyGroup]:
    """The keys by module, under one spelling. InputError where two keys mean the same."""
    roles_by_module: dict[str, dict[str, str]] = {}
    for key in tensors:
        match = next((m for spelling in _SPELLINGS if (m := spelling.fullmatch(key))), None)
        if match is None:
            continue
        matched = match.groupdict()
        role = SIDES[matched["side"]] if matched.get("side") else matched["other"]
        roles = roles_by_module.setdefault(_module(matched["module"], matched.get("projection")), {})
        if role in roles:
            raise InputError(
                "the file holds two adapters of one module",
                found=f"{roles[role]!r} and {key!r}",
                hint="save each in a file of its own: programs that read both differ in which of the two they apply",
            )
        roles[role] = key
    return {module: KeyGroup(module, roles) for module, roles in roles_by_module.items()}


def _module(path: str, projection: str | None) -> str:
    """The module's path today: `….attn1` and `to_out` are `….attn1.to_out.0`; in a text encoder, `….out_proj`."""
    path = path.removeprefix(PREFIX)
    if projection is None and _XLABS.fullmatch(path):
        return path
    path = path.replace(".processor.", ".").removesuffix(".processor")
    if projection is None:
        return path
    if path.startswith("text_encoder"):
        return f"{path}.{_IN_TEXT_ENCODER.get(projection, projection)}"
    return f"{path}.{projection}" + (".0" if projection == "to_out" else "")


def _update(group: KeyGroup, ledger: Ledger, settings: Settings) -> Update:
    missing = [side for side in ("down", "up") if side not in group]
    if missing:
        raise InputError(
            f"{group.module} is incomplete: its {' and '.join(missing)} tensor is missing",
            found=", ".join(group.keys.values()),
            hint="the file was cut or filtered; save it again",
        )
    down, up = group.take(ledger, "down"), group.take(ledger, "up")
    roles = low_rank_roles(down, up, None, (group.keys["down"], group.keys["up"]))
    rank, d_out = down.shape[0], up.shape[0]
    if "alpha" in group and settings.raw:
        raise InputError(
            f"two sources for one scale: {group.keys['alpha']!r} and {METADATA} in the file's metadata",
            expected="one of the two, as diffusers demands",
        )
    scale = alpha_scale(group, ledger, rank) if "alpha" in group else settings.scale(group.module, rank)
    kind = "low_rank"
    if "lora_magnitude_vector" in group:
        kind, roles = "magnitude", {**roles, "m": _magnitude(group, ledger, d_out)}
    group.skip(ledger, B_BIAS, ("lora_B.bias", "lora_B.default.bias"))
    update = Update(group.module, kind, roles, scale, kernel=kernel_of(down))
    return kohya.decomposed(group, ledger, update) if kind == "low_rank" else update


def _magnitude(group: KeyGroup, ledger: Ledger, d_out: int) -> Stored:
    stored = group.take(ledger, "lora_magnitude_vector")
    if sorted(stored.shape)[-1:] != [d_out] or sum(side != 1 for side in stored.shape) > 1:
        raise InputError(
            f"{group.keys['lora_magnitude_vector']!r} does not fit", found=tuple(stored.shape), expected=f"({d_out},)"
        )
    return reshaped(stored, d_out)


def _method(updates: Mapping[str, Update], settings: Settings) -> str:
    def name(update: Update) -> str:
        config_and_path = settings.find(update.name)
        plain = "rsLoRA" if config_and_path is not None and config_and_path[0].rslora else "LoRA"
        return "DoRA" if update.kind in kohya.DORA else plain

    return " + ".join(sorted(set(map(name, updates.values()))))


formats.register("diffusers")(Diffusers())

SUPPORT = (Support("diffusers, ComfyUI and XLabs' names", "the writer's formula in float64", base="for ΔW of DoRA"),)
