"""FourierFT and WaveFT in PEFT's files: coefficients of a transform of ΔW, at places that the seed tells.

Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", arXiv 2405.03003, and PEFT's
tuners/fourierft/layer.py: ΔW is the real part of the inverse transform. WaveFT puts them into one step of a wavelet
transform instead (tuners/waveft/layer.py). The places are the first n of torch's random permutation of all entries.
"""

import math
from typing import ClassVar

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg import wavelets
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.draws import seed_of
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.formats.peft.places import Filled, place_of
from lorascope.weights.support import Support
from lorascope.weights.torch_stream import first_of_permutation

SEED = "random_loc_seed"


class FourierFT(Family):
    peft_types = {"FOURIERFT": frozenset({"dense"})}
    roles = ("fourierft_spectrum",)
    marks = frozenset(roles)
    fields = "n_frequency n_frequency_pattern scaling random_loc_seed init_weights"
    title: ClassVar[str] = "FourierFT"
    usual_scaling: ClassVar[float] = 150.0

    def method_name(self, update: Update, config: Config) -> str:
        return self.title

    def read(self, group: Group, context: Context) -> Update:
        config = context.config
        if not config.given:
            raise InputError(
                f"{self.title} needs the seed and the scaling of its adapter_config.json, which is missing"
            )
        spectrum, place = group.stored[self.roles[0]], place_of(group.module, context)
        entries = place.d_out * place.d_in
        if len(spectrum.shape) != 1 or math.prod(spectrum.shape) > entries:
            key = group.keys[self.roles[0]].text
            raise InputError(
                f"{key} does not fit the base weight", found=spectrum.shape, expected=f"up to ({entries},)"
            )
        (count,) = spectrum.shape
        seed, scaling = seed_of(config, SEED, 777), config.raw.get("scaling", self.usual_scaling)
        if type(scaling) not in (int, float):
            raise InputError("adapter_config.json: scaling is not a number", found=scaling)
        self.check(config)
        note = (
            f"{self.title}: where its coefficients stand is not in the file; it was drawn again from {SEED} {seed}, as "
            "torch draws it for PEFT"
        )
        if note not in context.notes:
            context.notes.append(note)

        def delta() -> np.ndarray:
            places = first_of_permutation(seed, entries, count)
            return self.transformed(places, spectrum.read(), place.shape, config)

        role = Filled((spectrum, place.weight), place.shape, delta, count)
        return Update(group.module, "dense", {"delta": role}, float(scaling), place.transposed)

    def check(self, config: Config) -> None:
        """InputError where the config names a transform that is not known."""

    def transformed(self, places: np.ndarray, values: np.ndarray, shape: tuple[int, int], config: Config) -> np.ndarray:
        """ΔW (d_out, d_in) before scaling.

        The real part of the inverse transform of S is that of its Hermitian part, S(k) and S(−k) averaged, of which
        half of the columns says everything: that is half of the memory of a complex transform.
        """
        d_out, d_in = shape
        half = np.zeros((d_out, d_in // 2 + 1), dtype=np.complex128)
        rows, columns = np.divmod(places, d_in)
        for at_row, at_column in ((rows, columns), (-rows % d_out, -columns % d_in)):
            kept = at_column < half.shape[1]
            np.add.at(half, (at_row[kept], at_column[kept]), values[kept] / 2)
        return np.fft.irfft2(half, s=shape)


class WaveFT(FourierFT):
    peft_types = {"WAVEFT": frozenset({"dense"})}
    roles = ("waveft_spectrum",)
    marks = frozenset(roles)
    fields = f"{FourierFT.fields} wavelet_family use_idwt proportional_parameters"
    title = "WaveFT"
    usual_scaling = 25.0

    def check(self, config: Config) -> None:
        name = config.raw.get("wavelet_family", "db1")
        if config.raw.get("use_idwt", True) and name not in wavelets.names():
            raise InputError(
                "adapter_config.json: wavelet_family is none of those that PEFT computes ΔW with", found=name,
                expected=", ".join(wavelets.names()),
            )  # fmt: skip

    def transformed(self, places: np.ndarray, values: np.ndarray, shape: tuple[int, int], config: Config) -> np.ndarray:
        """The coefficients stand in the middle of a matrix that is larger by what the transform cuts off, and even."""
        rows, columns = np.divmod(places, shape[1])
        if not config.raw.get("use_idwt", True):
            delta = np.zeros(shape)
            delta[rows, columns] = values
            return delta
        name = str(config.raw.get("wavelet_family", "db1"))
        more = len(wavelets.filters(name)[0]) - 2
        padded = [size + more + (size + more) % 2 for size in shape]
        down, right = ((large - size) // 2 for large, size in zip(padded, shape, strict=True))
        coefficients = np.zeros(padded)
        coefficients[rows + down, columns + right] = values
        return wavelets.inverse_step(coefficients, name)[: shape[0], : shape[1]]  # at most one row and column is more


families.register("fourierft")(FourierFT())
families.register("waveft")(WaveFT())

SUPPORT = (
    Support("FourierFT", "PEFT's merge in float64", base="for shapes", peft="FOURIERFT"),
    Support("WaveFT", "PEFT's merge in float64", base="for shapes", peft="WAVEFT"),
)
