"""Names of modules and parameters: what wrappers put into them, taken out again.

torch.compile, DDP, DeepSpeed, FSDP and activation checkpointing each wrap a module in another, whose attribute then
stands in the key of every tensor below: `model._orig_mod.layers.0._checkpoint_wrapped_module.q_proj.weight`.
"""

# By whom: torch.compile; FSDP; torch's activation checkpointing and offloading; Lightning Fabric; FSDP before torch 2.
ALWAYS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module")
OUTSIDE = "module"  # DDP, DataParallel, DeepSpeed, AveragedModel: around a whole model or component
WRAPPERS = (*ALWAYS, OUTSIDE)


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
        beside = {*segments[max(i - 1, 0) : i], *segments[i + 1 : i + 2]} & set(ALWAYS)
        return segment != OUTSIDE or not (beside or i < first_number)

    return ".".join(segment for i, segment in enumerate(segments) if stays(i, segment))
