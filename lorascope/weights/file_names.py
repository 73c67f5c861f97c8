"""By which names, and which first bytes, files of weights are known."""

SAFETENSORS = (".safetensors", ".sft")
GGUF = (".gguf",)
GGUF_MAGIC = b"GGUF"  # the first bytes: Ollama's files have no ending
HDF5 = (".h5", ".hdf5")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".lora")  # the last is litgpt's: lit_model.pth.lora
METADATA = ".metadata"  # of torch.distributed.checkpoint, which lists the tensors in *.distcp files
