"""A classifier that no transformers class is: an encoder, the mean over its tokens, one linear layer.

The head's name, `mean_pool_head`, is one that the family's own sequence classifiers do not have. Their head sits on
another feature (BERT's on the pooler of the first token), and predicts at chance with weights that were trained on the
mean: under a name of its own, an adapter with this head is refused by PEFT on such a model.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.architectures import MEAN_POOL_HEAD
from lorascope.errors import InputError
from lorascope.inputs import misfit, open_regular, read_json
from lorascope.outputs import json_text, write_text

HEAD = MEAN_POOL_HEAD
MODEL_TYPE = "lorascope_mean_pool"
CODE = "modeling_lorascope_mean_pool"
SHAPE = {"encoder": {"model_type": (str,)}, "dtype": frozenset(("float32", "float16", "bfloat16", "float64"))}
_OLD_HEAD = "mean_pool_head.safetensors"  # lorascope 0.1 saved a plain encoder, and the head in a file of this name


class MeanPoolClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the tokens that are no padding, and one linear layer.

    The encoder sits under the attribute its family uses (`bert`, `roberta`, ...), so that its modules' paths, and with
    them an adapter's keys, are those of the family's own models. The pooler, which nothing here calls, is left out.

    Args:
        encoder: a transformers encoder, as `AutoModel` gives it.
        num_labels: how many classes. The head starts at N(0, 0.02²), its bias at zero.
    """

    def __init__(self, encoder: Any, num_labels: int):
        super().__init__()
        if getattr(encoder.config, "is_encoder_decoder", False):
            raise InputError(
                "a mean-pool head sits on an encoder, and this model has a decoder too", hint="head: native"
            )
        if isinstance(getattr(encoder, "pooler", None), nn.Module):
            encoder.pooler = None
        self.base_model_prefix = encoder.base_model_prefix
        setattr(self, self.base_model_prefix, encoder)
        self.mean_pool_head = nn.Linear(encoder.config.hidden_size, num_labels)
        nn.init.normal_(self.mean_pool_head.weight, std=0.02)
        nn.init.zeros_(self.mean_pool_head.bias)
        self.config = encoder.config
        self.config.num_labels = num_labels

    @property
    def encoder(self) -> Any:
        return getattr(self, self.base_model_prefix)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mean-pooled hidden states, (batch, hidden_size)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (b, t, h)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (b, t, 1)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """Logits (batch, num_labels), in transformers' output object."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SequenceClassifierOutput(logits=self.mean_pool_head(self.features(input_ids, mask)))

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        self.encoder.gradient_checkpointing_enable(**settings)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """The whole model in a folder, with the code that transformers needs for it.

        `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` opens it; without that
        switch transformers refuses it, since no class of its own computes this.
        """
        from safetensors.torch import save_file

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, place / "model.safetensors", {"format": "pt"})
        shutil.copyfile(Path(__file__).parent / "code" / f"{CODE}.py", place / f"{CODE}.py")
        config = {
            "model_type": MODEL_TYPE,
            "architectures": ["MeanPoolForSequenceClassification"],
            "auto_map": {
                "AutoConfig": f"{CODE}.MeanPoolConfig",
                "AutoModelForSequenceClassification": f"{CODE}.MeanPoolForSequenceClassification",
            },
            "encoder": self.config.to_dict(),
            "encoder_prefix": self.base_model_prefix,
            "id2label": {str(number): name for number, name in self.config.id2label.items()},
            "label2id": dict(self.config.label2id),
            "dtype": str(self.mean_pool_head.weight.dtype).removeprefix("torch."),
        }
        write_text(place / "config.json", json_text(config, indent=2, sort_keys=True) + "\n")


def saved_config(place: str | os.PathLike) -> dict[str, Any] | None:
    """The config of a folder that `save_pretrained` wrote; None of any other model."""
    path = Path(place) / "config.json"
    if not path.is_file():
        return None
    try:
        config = read_json(path)
    except InputError:
        return None  # transformers says what is wrong with it
    return config if config.get("model_type") == MODEL_TYPE else None


def load(place: str | os.PathLike, config: dict[str, Any], num_labels: int, dtype: torch.dtype | str) -> nn.Module:
    """The model that `save_pretrained` wrote. A head of another number of classes than asked for is drawn anew.

    Raises:
        InputError: the folder is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    if wrong := misfit(config, SHAPE):
        raise InputError(f"cannot load the model {place}", found=f"{wrong} in its config.json")
    open_regular(Path(place) / "model.safetensors").close()
    try:
        encoder_config = dict(config["encoder"])
        built = AutoConfig.for_model(encoder_config.pop("model_type"), **encoder_config)
        tensors = load_file(Path(place) / "model.safetensors")
        if dtype == "auto":
            dtype = getattr(torch, config["dtype"])
        model = MeanPoolClassifier(AutoModel.from_config(built, dtype=dtype), num_labels).to(dtype)
        if tensors[f"{HEAD}.weight"].shape[0] != num_labels:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{HEAD}.")}
        mismatch = model.load_state_dict(tensors, strict=False)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"cannot load the model {place}", found=" ".join(str(error).split())[:300]) from error
    keys = (*mismatch.missing_keys, *mismatch.unexpected_keys)
    wrong_keys = [name for name in keys if not name.startswith(f"{HEAD}.")]
    if wrong_keys:
        raise InputError(f"cannot load the model {place}", found=f"missing or unknown: {', '.join(wrong_keys[:3])}")
    return model


def load_old_head(model: MeanPoolClassifier, place: str | os.PathLike) -> bool:
    """Fill the head from the file that lorascope 0.1 left next to an encoder; whether there was one."""
    path = Path(place) / _OLD_HEAD
    if not path.is_file():
        return False
    from safetensors.torch import load_file

    model.mean_pool_head.load_state_dict(load_file(path))
    return True
