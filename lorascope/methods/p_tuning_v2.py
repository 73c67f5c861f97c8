"""P-tuning v2: deep prompts, which are keys and values of virtual tokens in every layer, trained directly.

Liu et al. 2021, arXiv 2110.07602, §3: what prefix tuning does to generation, for classification and at every model
size: no network between (its use "depends on tasks and datasets"), longer prompts for harder tasks (20 for sentences,
100 and more for tagging), and a linear classification head in place of a verbaliser. n · 2·layers·heads·head_dim
numbers. The paper's code starts at N(0, 1) (torch's Embedding), which is `init: gaussian`; here the default is the
frozen model's own keys and values of drawn tokens, which starts nearer to the base model. The code drops entries of the
prefix out while training; this does not.

In a file it is prefix tuning: PEFT's PREFIX_TUNING without a projection. Everything else is said in prefix.py.
"""

from dataclasses import dataclass

from lorascope.adapt.method import methods
from lorascope.methods.prefix import PrefixConfig, PrefixTuning


@dataclass(frozen=True)
class PTuningV2Config(PrefixConfig):
    """Settings of P-tuning v2: prefix tuning's, without its network. The paper searches rates from 5e-3 to 1e-2;
    on the packaged task 1e-2 does well.
    """

    prefix_projection: bool = False


@methods.register("p_tuning_v2")
class PTuningV2(PrefixTuning):
    """Trains keys and values of n virtual tokens in every layer, directly."""

    name, paper = "p_tuning_v2", "Liu et al. 2021, arXiv 2110.07602"
    Config = PTuningV2Config
    config: PTuningV2Config
