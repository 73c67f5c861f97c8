"""What a study's page warns of and states, from its record alone."""

from lorascope.study import page

COLUMNS = ["method", "rank", "replicate", "loss"]


def runs(*rows):
    return {"columns": COLUMNS, "rows": [list(row) for row in rows]}


def test_replicates_that_ended_far_apart_are_named():
    broken = [("lora", 16, i, loss) for i, loss in enumerate((0.03, 3.2, 0.08))]
    steady = [("lora", 8, i, loss) for i, loss in enumerate((0.70, 0.74, 0.85))]
    (told,) = page._apart(runs(*broken, *steady))
    assert told.startswith("method lora, rank 16: final losses of the replicates differ widely (0.03 to 3.2)")
    assert page._apart(runs(*steady)) == []
    assert page._apart(runs(("lora", 8, 0, 0.001), ("lora", 8, 1, 0.05))) == []  # twice, and still nothing


def test_whole_numbers_stay_whole_beside_missing_ones():
    table = page._table("runs", {"columns": ["rank", "loss", "seed"], "rows": [[16.0, 0.5, 7], [None, 1.0, 8]]})
    assert [column.unit for column in table.columns] == ["int", "float", "text"]
    assert table.rows == ((16, 0.5, "7"), (None, 1.0, "8"))


def test_an_arm_scored_on_its_own_texts_is_told():
    arm = {"labels": {"task": "memorise"}, "changes": {"data.eval_split": "train", "method.rank": 4}}
    assert "data.eval_split" in page._scored_elsewhere({"arms": [arm]})
    assert page._scored_elsewhere({"arms": [{"labels": {}, "changes": {"method.rank": 4}}]}) == ""
    (table,) = page._arms({"arms": [arm]})
    assert table.rows == (("memorise", "data.eval_split train, method.rank 4"),)
