"""Numbers that torch draws on the CPU from a seed, without torch: its generator is the Mersenne Twister that numpy has.

What is followed is ATen's code (native/TensorFactories.cpp, `randperm_cpu`; native/cpu/DistributionTemplates.h,
`normal_fill`; core/TransformationHelper.h), whose stream torch does not promise to keep. The tests compare with the
torch that is installed.
"""

import numpy as np

_WIDE = (2**32 - 1) // 20  # from here on `randperm` goes through all places by another algorithm


def first_of_permutation(seed: int, length: int, count: int) -> np.ndarray:
    """The first `count` entries of `torch.randperm(length)` from this seed, in O(count) time and memory.

    Of more than two hundred million entries, by torch itself.
    """
    if length >= _WIDE:
        import torch

        return torch.randperm(length, generator=torch.Generator().manual_seed(seed))[:count].numpy()
    count = min(count, length)
    steps = np.arange(count)
    targets = (steps + _words(seed, count).astype(np.int64) % (length - steps)).tolist()
    moved: dict[int, int] = {}  # a place that was swapped, and what stands there
    first = []
    for step, target in enumerate(targets):
        here = moved.pop(step, step)
        first.append(moved.get(target, target) if target != step else here)
        if target != step:
            moved[target] = here
    return np.array(first, dtype=np.int64)


def normals(seed: int, count: int) -> np.ndarray:
    """`torch.randn(count)` from this seed, in float64 instead of float32: equal to about six digits.

    Blocks of 16 by Box and Muller's formula, eight cosines and their eight sines, the last block over what was there;
    fewer than 16 one by one in double.
    """
    if count < 16:
        return _few_normals(seed, count)
    full = count - count % 16
    uniform = _uniform(_words(seed, count + 16))
    values = np.empty(count)
    values[:full] = _blocks(uniform[:full])
    if count % 16:
        values[-16:] = _blocks(uniform[count:])
    return values


def _blocks(uniform: np.ndarray) -> np.ndarray:
    first, second = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _few_normals(seed: int, count: int) -> np.ndarray:
    words = _words(seed, 4 * (-(-count // 2))).astype(np.uint64)
    wide = (words[0::2] << np.uint64(32)) | words[1::2]
    uniform = (wide & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    angle, second = 2 * np.pi * uniform[0::2], uniform[1::2]
    radius = np.sqrt(-2 * np.log1p(-second))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:count]


def _uniform(words: np.ndarray) -> np.ndarray:
    return (words & np.uint32(2**24 - 1)).astype(np.float64) * 2.0**-24


def _words(seed: int, count: int) -> np.ndarray:
    """The generator's first 32-bit words."""
    return np.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, size=count, dtype=np.uint32)
