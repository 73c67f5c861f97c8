"""What a study trains: its scales and arms, as a script states them. No torch is imported for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Scalar = str | int | float | bool | None
ENCODER, DECODER = "encoder", "decoder"  # test beds


@dataclass(frozen=True)
class StudyScale:
    """One size of a study: smoke, small or full.

    Attributes:
        config: what every run has in common: the sections of a training config, as nested dictionaries.
        replicates: how many independent runs of every arm: each draws its own initialisation, data subset and order.
        params: the study's own sizes, such as the ranks.
        test_split: where final runs are scored, and nothing is chosen; None scores them on the held-out texts.
        test_samples: how many of its texts, the same for all runs; None takes all.
        conclusive: whether it gives verdicts. A smoke run only shows that the study runs.
        testbed: what it trains on, in a word: studies of one test bed share runs, and the index compares test beds.
        by_arm: whether each arm is measured before the next one is trained (`together`): weights are large.
    """

    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    replicates: int = 5
    params: Mapping[str, Any] = field(default_factory=dict)
    test_split: str | None = "test"
    test_samples: int | None = None
    conclusive: bool = True
    testbed: str = ENCODER
    by_arm: bool = False


@dataclass(frozen=True)
class Arm:
    """One cell of the grid: what it is called, and what it changes in the common config.

    Attributes:
        labels: its columns in the table of runs, such as {"method": "lora", "rank": 4}.
        changes: config values by "section.key".
        learning_rates: ascending, the rates that its sweep begins with (`tuning`). Empty: the config's rate.
        rate_of: labels of the arm whose tuned rate this one takes, in place of a sweep of its own: the choice of all
            replicates, which is not made again in a bootstrap draw.
        own_data: whether its texts, their order and its head are drawn by its own seed: for arms that must be
            independent of the others. Otherwise all arms share them within a replicate, and are paired.
        rate_factor: times which it takes that rate, where a theory says how the best rate changes.
        seed: runs get the seeds seed, seed + 1, ...; None gives each arm seeds of its own, drawn from its config.
        seeded: config values by "section.key" that are the run's seed, such as that of VeRA's matrices.
    """

    labels: Mapping[str, Scalar]
    changes: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    rate_of: Mapping[str, Scalar] | None = None
    seed: int | None = None
    seeded: tuple[str, ...] = ()
    rate_factor: float = 1.0
    own_data: bool = False
