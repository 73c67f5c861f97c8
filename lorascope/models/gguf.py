"""A quantised GGUF file as an ordinary transformers model.

transformers dequantises a GGUF while loading, but the model it returns still calls itself quantised and refuses to be
saved. The copy made here is the plain architecture holding exactly the same float32 values.
"""

from pathlib import Path


def dequantise(source: Path, target: Path) -> None:
    """Write the Llama model and tokenizer of the GGUF file `source` into the folder `target`, in float32.

    float32 because the dequantised values, block scale × 4-bit code + block minimum, do not fit in float16 exactly.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    quantised = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = quantised.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    with torch.device("meta"):
        clean = LlamaForCausalLM(LlamaConfig.from_dict(config))
    clean.load_state_dict(quantised.state_dict(), assign=True)
    clean.tie_weights()
    clean.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
