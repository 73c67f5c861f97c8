"""An encoder, the mean of its last hidden states over the tokens that are no padding, and one linear layer.

Written by lorascope into the folder of a merged model. It needs torch and transformers, and nothing else:

    AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPoolConfig(PretrainedConfig):
    model_type = "lorascope_mean_pool"

    def __init__(self, encoder=None, encoder_prefix="bert", **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.encoder_prefix = dict(encoder or {}), encoder_prefix


class MeanPoolForSequenceClassification(PreTrainedModel):
    config_class = MeanPoolConfig

    def __init__(self, config):
        super().__init__(config)
        values = dict(config.encoder)
        encoder = AutoModel.from_config(AutoConfig.for_model(values.pop("model_type", "bert"), **values))
        if isinstance(getattr(encoder, "pooler", None), nn.Module):
            encoder.pooler = None
        setattr(self, config.encoder_prefix, encoder)
        self.mean_pool_head = nn.Linear(encoder.config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        kept = {name: value for name, value in kwargs.items() if name in ("token_type_ids", "position_ids")}
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        encoder = getattr(self, self.config.encoder_prefix)
        hidden = encoder(input_ids=input_ids, attention_mask=mask, **kept).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.mean_pool_head((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
