"""A study's files, damaged: a report is refused in one sentence, and what lies in the store is done again."""

import os
from pathlib import Path

import pytest

from lorascope.errors import InputError, LorascopeError
from lorascope.report import serial
from lorascope.study import record
from lorascope.study.store import Job, Store
from lorascope.study.work import ROWS, TEST, read_rows, read_score

CONTENT = (Path(__file__).parents[2] / "reports" / "lora_fa.json").read_bytes()
NESTED = b'[{"type": "Text", "text": ' + b"[" * 900 + b"]" * 900 + b"}]"
DAMAGES = {
    "empty": b"",
    "binary": bytes(range(256)),
    "cut off": CONTENT[: len(CONTENT) // 2],
    "a list": b"[]",
    "not UTF-8": CONTENT.replace(b'"title": "', b'"title": "\xff', 1),
    "deep": b"[" * 100_000,
    "400 digits": CONTENT.replace(b'"replicates": ', b'"replicates": ' + b"9" * 400, 1),
    "infinity": CONTENT.replace(b'"params": {', b'"params": {"x": 1e999, ', 1).replace(b", }", b"}"),
    "NaN": CONTENT.replace(b'"params": {', b'"params": {"x": NaN, ', 1).replace(b", }", b"}"),
    "a surrogate": CONTENT.replace(b'"title": "', b'"title": "\\ud800', 1),
    "deep figures": CONTENT.replace(b'"figures": [', b'"figures": [' + NESTED + b", ", 1).replace(b", ]", b"]"),
}


def one_sentence(error: LorascopeError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) <= 1_500
    assert error.exit_code == 2


@pytest.mark.parametrize("damage", [*DAMAGES, "a folder", "a pipe"])
def test_a_damaged_report_is_one_sentence(tmp_path, damage):
    path = tmp_path / "report.json"
    if damage in ("a folder", "a pipe"):
        path.mkdir() if damage == "a folder" else os.mkfifo(path)
    else:
        assert DAMAGES[damage] != CONTENT
        path.write_bytes(DAMAGES[damage])
    with pytest.raises(InputError) as error:
        serial.from_json(record.read(path)["figures"])
    one_sentence(error.value)


@pytest.mark.parametrize("text", ["", "[1]", '{"seconds": "x"}', '{"files": [1]}', '{"seconds": NaN}', "[" * 100_000])
def test_work_whose_last_file_is_damaged_is_not_done(tmp_path, text):
    store, job = (
        Store(tmp_path),
        Job({"kind": "measure", "script": "study.py", "function": "f", "code": "", "params": {}}),
    )
    store.begin(job)
    (store.folder(job.key) / ROWS).write_text("{}")
    store.finish(job.key, {"seconds": 1.0})
    assert store.intact(job)
    (store.folder(job.key) / "done.json").write_text(text)
    assert store.done(job.key) is None
    assert not store.intact(job)
    (store.folder(job.key) / "done.json").write_text('{"files": {"a\\u0000b": 1}}')
    assert not store.intact(job)


@pytest.mark.parametrize("text", ["", "[1]", '{"rows": 1}', '{"rows": [1]}', '{"loss": "x", "accuracy": 1}', "{}"])
def test_damaged_numbers_of_the_store_are_one_sentence(tmp_path, text):
    for name, reads in ((ROWS, lambda: read_rows(tmp_path)), (TEST, lambda: read_score(tmp_path / TEST))):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name) as error:
            reads()
        one_sentence(error.value)
