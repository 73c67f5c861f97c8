"""Where values become files: nothing is destroyed, nothing half-written, and every reader takes what is there."""

import contextlib
import csv
import io
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lorascope import destinations, outputs
from lorascope.errors import InputError, LorascopeError


def dead_pid() -> int:
    """The number of a process that was, and is no more."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.json", tmp_path / "a.json"
    link.symlink_to(target)
    outputs.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["a.json"]


def test_a_pipe_is_written_through(tmp_path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    outputs.write_bytes(pipe, [b"one", b"two"])
    reader.join(10)
    assert found == [b"onetwo"]
    assert pipe.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="a device node takes root")
def test_a_device_stays_a_device(tmp_path):
    node = tmp_path / "null"
    try:
        os.mknod(node, 0o666 | 0o020000, os.makedev(1, 3))
        outputs.write_text(node, "x")
    except (PermissionError, LorascopeError):
        pytest.skip("this container opens no device of one's own")
    assert node.is_char_device()


def test_an_open_file_of_the_process(tmp_path):
    with open(tmp_path / "log", "wb") as file:
        outputs.write_text(f"/dev/fd/{file.fileno()}", "x")
    assert (tmp_path / "log").read_text() == "x"


def test_modes(tmp_path):
    before = os.umask(0o027)
    try:
        outputs.write_text(tmp_path / "new", "x")
        (tmp_path / "old").write_text("x")
        (tmp_path / "old").chmod(0o600)
        outputs.write_text(tmp_path / "old", "y")
        with outputs.staged(tmp_path / "folder") as stage:
            outputs.write_text(stage / "file", "x")
    finally:
        os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (*tmp_path.iterdir(), tmp_path / "folder" / "file")}
    assert modes == {"new": "0o640", "old": "0o600", "folder": "0o750", "file": "0o640"}


@pytest.mark.parametrize("write", [outputs.write_text, lambda path, text: outputs.append_json(path, text)])
def test_a_folder_that_is_missing_is_a_sentence(write, tmp_path):
    with pytest.raises(LorascopeError, match="cannot write"):
        write(tmp_path / "no" / "a", "x")


def test_what_a_killed_process_left_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    dead, alive = (f".a.json.{pid}-00c0ffee.part" for pid in (dead_pid(), os.getppid()))
    for name in (dead, alive, ".a.json.other"):
        (tmp_path / name).write_text("half")
    outputs.write_text(tmp_path / "a.json", "x")
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", alive, ".a.json.other"}


def test_a_stage_becomes_the_folder_or_vanishes(tmp_path):
    with contextlib.suppress(RuntimeError), outputs.staged(tmp_path / "a") as stage:
        (stage / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with outputs.staged(tmp_path / "a") as stage:
        (stage / "whole").write_text("x")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["whole"]
    with pytest.raises(InputError, match="already exists"), outputs.staged(tmp_path / "a"):
        pass


def test_a_replaced_folder_keeps_its_other_files(tmp_path):
    folder = tmp_path / "a"
    (folder / "deep").mkdir(parents=True)
    for name in ("same", "other", "deep/file"):
        (folder / name).write_text("old")
    with outputs.staged(folder, replace=True) as stage:
        (stage / "same").write_text("new")
    found = {name: (folder / name).read_text() for name in ("same", "other", "deep/file")}
    assert found == {"same": "new", "other": "old", "deep/file": "old"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_put_aside_by_a_killed_process_comes_back(tmp_path):
    aside = tmp_path / f".a.{dead_pid()}-00c0ffee.old"
    aside.mkdir()
    (aside / "file").write_text("old")
    with pytest.raises(InputError, match="already exists"), outputs.staged(tmp_path / "a"):
        pass
    outputs.write_text(tmp_path / "b", "x")
    with outputs.staged(tmp_path / "a", replace=True):
        pass
    assert (tmp_path / "a" / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"--html": "ad/adapter_model.safetensors"}, "is an input"),
        ({"--json": "hard.json"}, "is an input"),
        ({"--json": "link.json"}, "is an input"),
        ({"--json": "ad/adapter_config.json"}, "is an input"),
        ({"--json": "x", "--csv": "ad/../x"}, "the same file"),
        ({"--html": "ad"}, "is a folder"),
        ({"--html": "ad/notes.txt"}, "is an input"),
        ({"--csv": "ad/tokenizer.model"}, "is an input"),
        ({"--html": "new"}, "is a folder"),
        ({"--json": "new/adapter_config.json"}, "a file of the new folder"),
        ({"--csv": "loop"}, "leads to itself"),
        ({"--csv": "x" * 300}, "too long"),
        ({"--csv": "/dev/fd/977"}, "Bad file descriptor"),
        ({"--json": "-", "--csv": "/dev/stdout"}, "the same file"),
        ({"--html": "no/such/x.html"}, "a folder that is not there"),
    ],
)
def test_outputs_that_would_destroy_something(options, said, lora_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ad").mkdir()
    for file in lora_folder.iterdir():
        (tmp_path / "ad" / file.name).write_bytes(file.read_bytes())
    os.link("ad/adapter_model.safetensors", "hard.json")
    os.symlink("ad/adapter_config.json", "link.json")
    os.symlink("loop", "loop")
    for name in ("notes.txt", "tokenizer.model"):
        (tmp_path / "ad" / name).write_text("x")
    with pytest.raises(InputError, match=said):
        destinations.check_outputs({name: Path(path) for name, path in options.items()}, ["ad"], Path("new"))


def test_what_stands_beside_an_input_file_is_read_with_it(lora_folder, tmp_path):
    for file in lora_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    source = tmp_path / "adapter_model.safetensors"
    with pytest.raises(InputError, match="is an input"):
        destinations.check_outputs({"--csv": tmp_path / "adapter_config.json"}, [source])
    (tmp_path / "notes.csv").write_text("mine")
    destinations.check_outputs({"--csv": tmp_path / "notes.csv"}, [source])


@pytest.mark.parametrize("name", ["link", "//dev/stdout", "/dev/../dev/stdout", "log"])
def test_what_stdout_goes_to_is_written_through(name, lora_folder, tmp_path):
    (tmp_path / "log").write_text("precious\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    command = [sys.executable, "-m", "lorascope", "analyze", str(lora_folder), "--csv", name]
    with open(tmp_path / "log", "a") as log:
        subprocess.run(command, stdout=log, cwd=tmp_path, check=True, timeout=60)
    text = (tmp_path / "log").read_text()
    assert text.startswith("precious\n")
    assert "LoRA (PEFT)" in text
    assert "\npath,name," in text


def test_outputs_that_are_fine(lora_folder, tmp_path):
    (tmp_path / "old.html").write_text("x")
    (tmp_path / "page.html").write_text('<!DOCTYPE html>\n<meta name="generator" content="lorascope">')
    destinations.check_outputs({"--html": tmp_path / "page.html"}, [tmp_path])
    out = {"--html": tmp_path / "old.html", "--json": tmp_path / "new" / "a.json", "--csv": None}
    destinations.check_outputs(out, [lora_folder, "minilm"], folder=tmp_path / "new")
    destinations.check_outputs({"--html": os.devnull and tmp_path / "a", "--json": tmp_path / "b"}, [])


def test_json_has_no_nan_and_takes_half_a_surrogate_pair(tmp_path):
    value = {"a": [1.5, math.nan, (math.inf,)], "b": {"c": -math.inf}, "name": "\udcff", "sign": "‖ΔW‖"}
    outputs.write_json(tmp_path / "a.json", value)
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found == {"a": [1.5, None, [None]], "b": {"c": None}, "name": "\udcff", "sign": "‖ΔW‖"}
    assert value["a"][1] is math.nan or math.isnan(value["a"][1])


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1", "＠x"])
def test_a_cell_is_no_formula(text):
    (row,) = csv.DictReader(io.StringIO(outputs.csv_text([{"name": text}])))
    assert row["name"].startswith("'")
    assert row["name"].isprintable()


def test_a_cell_is_one_line_and_a_number_stays_one():
    rows = [{"name": "a\r\nb\u202e\u2028\x1b[31m", "x": -1.5, "flag": True, "none": None, "nan": math.nan, "=h": 1}]
    text = outputs.csv_text(rows)
    assert text.count("\n") == 2
    assert text.splitlines()[0] == "name,x,flag,none,nan,'=h"
    assert text.splitlines()[1] == "a\\r\\nb\\u202e\\u2028\\x1b[31m,-1.5,True,,,1"
