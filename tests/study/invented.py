"""Invented records of schema 2, with what their pages need."""


def criterion(text="gain of A less that of B", **changes):
    """Reproduced: half of the published 4 % at least, with an interval above it."""
    made = {
        "text": text, "at_least": 0.02, "at_most": None, "no_effect": 0.0, "published": 0.04, "supposed": 0.04,
        "origin": "half of the published 4 % (Table 2)", "margin": None, "unit": "percent", "estimate": 0.03,
        "low": 0.025, "high": 0.035, "se": 0.002, "df": 8.0, "outcome": "reproduced", "reason": "", "control": False,
        "power": {"reproduced": 0.82, "absent": 0.64, "noise": "this record's own noise"},
        "also": [{"unit": "nats", "estimate": 0.009, "low": 0.0075, "high": 0.0105}],
    }  # fmt: skip
    return made | changes


def control(text="the same with half of the steps", **changes):
    """Failed, as it must."""
    numbers = {"estimate": -0.1, "low": -0.12, "high": -0.08, "outcome": "failed", "power": None, "also": []}
    return criterion(text, control=True) | numbers | changes


def claim(name="better", *criteria, **changes):
    made = {
        "name": name, "text": f"A gains more than B ({name})", "source": "Somebody 2024, Table 2", "note": "",
        "setting": "RoBERTa-large, MNLI, 100,000 steps", "kind": "observation", "verdict": "reproduced", "reason": "",
        "criteria": list(criteria) or [criterion(), control()], "decided_by": 0, "p": 0.0004, "q": 0.02,
        "frozen": {"hash": "0" * 64, "date": "2026-11-29", "before_runs": True}, "amendments": [],
    }  # fmt: skip
    return made | changes


def record(name="paper", *claims, scale="small", testbed="encoder", **changes):
    made = {
        "schema": 2, "kind": "study", "name": name, "title": f"Title of {name}?", "question": "What, and why?",
        "varied": "the method", "tuned": "the learning rate", "fixed": "the rest", "reading": "It does, here.",
        "scale": {"name": scale, "replicates": 5, "params": {}, "conclusive": scale != "smoke", "test_split": "test",
                  "test_samples": 1000, "config": {"model": {"name": "minilm", "num_hidden_layers": 3}},
                  "testbed": testbed},
        "claims": list(claims) or [claim()], "removed": [], "noise": [],
        "cost": {"runs": 290, "measurements": 4, "seconds_of_work": 7200.0, "taken_from_the_store": 0,
                 "seconds_of_this_call": 1.0},
        "made": {"command": "lorascope study run paper", "date": "2026-11-20", "judged": "2026-11-29",
                 "lorascope": "0.1.0", "python": "3.11", "platform": "Linux", "devices": [], "versions": {}},
        "arms": [{"labels": {"method": "A"}, "changes": {"method.rank": 4}}], "tuning": [], "failures": [],
        "runs": {"columns": ["method", "replicate", "loss"], "rows": [["A", i, 0.7 + 0.01 * i] for i in range(5)]},
        "tables": {}, "strata": {"runs": [0] * 5}, "texts": None, "figures": [],
    }  # fmt: skip
    return made | changes
