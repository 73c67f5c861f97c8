"""What the names of transformers' classes say of a model: its task by PEFT's name, and its output layer."""

CONDITIONAL = "ForConditionalGeneration"  # an encoder and decoder, or a language model that also sees: the config says
_TASKS = (
    ("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM"), ("ForSequenceClassification", "SEQ_CLS"),
    ("ForTokenClassification", "TOKEN_CLS"), ("ForQuestionAnswering", "QUESTION_ANS"),
)  # fmt: skip
# Where a masked language model keeps its output layer (transformers 5); a causal one's is `lm_head`.
_MASKED_OUTPUTS = {
    "BertForMaskedLM": "cls.predictions.decoder",
    "RobertaForMaskedLM": "lm_head.decoder",
    "XLMRobertaForMaskedLM": "lm_head.decoder",
    "CamembertForMaskedLM": "lm_head.decoder",
    "DistilBertForMaskedLM": "vocab_projector",
    "ElectraForMaskedLM": "generator_lm_head",
    "AlbertForMaskedLM": "predictions.decoder",
    "ModernBertForMaskedLM": "decoder",
}


def task_of_class(name: str) -> str | None:
    """PEFT's `task_type` of a class; None for a bare model, and where the name alone does not say (`CONDITIONAL`)."""
    return next((task for ending, task in _TASKS if name.endswith(ending)), None)


def output_of_class(name: str) -> str | None:
    """The path of the output layer over the vocabulary; None of a class that has none, or whose is not known."""
    if task_of_class(name) == "CAUSAL_LM" or name.endswith(CONDITIONAL):
        return "lm_head"
    return _MASKED_OUTPUTS.get(name)


def is_masked(name: str) -> bool:
    """Whether a class is a masked language model."""
    return name.endswith("ForMaskedLM")
