"""The README's pictures, light and dark: the first screen of an adapter of Llama-3-8B's shape, plain and with numbers
at the parts that "Reading the report" explains.

    python -m tests.report.pictures reports/

The weights are drawn, not trained: spectra decay at rates that differ by layer and module type, so that the map has
something to show. Needs chromium (see `tests/browser.py`) and Pillow.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import lorascope as ls
from tests.benchmarks.adapters import LLAMA_8B, projections
from tests.browser import ARGUMENTS, chromium_path

RANK, SIZE, COLOURS = 16, {"width": 1100, "height": 1000}, 256
EXPLAINED = (".status", *(f".tiles > :nth-child({i})" for i in (3, 4, 5)), ".finding", ".heatmap")
NUMBER = """(selectors) => selectors.forEach((selector, i) => {
  const place = document.querySelector(selector).getBoundingClientRect(), mark = document.createElement("b");
  mark.textContent = i + 1;
  mark.style = `position:absolute;left:${place.left - 13}px;top:${place.top + scrollY - 13}px;width:26px;height:26px;` +
    "border-radius:50%;background:#b3261e;color:#fff;font:bold 15px/26px sans-serif;text-align:center";
  document.body.append(mark);
})"""  # a red disc at the upper left corner of each


def write_adapter(folder: Path) -> Path:
    """A LoRA of rank 16 in every projection of 32 layers."""
    rng = np.random.default_rng(8)
    sizes = {key: LLAMA_8B[key] for key in ("hidden", "kv", "inner")}
    tensors = {}
    for layer in range(LLAMA_8B["layers"]):
        for j, (name, (d_out, d_in)) in enumerate(projections(**sizes).items()):
            decay = 0.62 + 0.2 * np.sin(layer / 6 + j) ** 2 + 0.05 * rng.random()
            level = 0.9 / d_out**0.5 * (1 + 0.5 * np.sin(layer / 5 + j)) * np.exp(0.25 * rng.standard_normal())
            key = f"base_model.model.model.layers.{layer}.{name}"
            learned = rng.standard_normal((RANK, 4)) @ rng.standard_normal((4, d_in)) / 2
            a = ((rng.uniform(-1, 1, (RANK, d_in)) + learned) / d_in**0.5).astype(np.float32)
            b = (level * rng.standard_normal((d_out, RANK)) * decay ** np.arange(RANK)).astype(np.float32)
            tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none", "task_type": "CAUSAL_LM",
        "target_modules": [name.split(".")[-1] for name in projections(**sizes)],
        "base_model_name_or_path": "meta-llama/Meta-Llama-3-8B",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def main(out: Path) -> None:
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        page = Path(place) / "page.html"
        write_adapter(Path(place) / "llama-3-8b-r16")
        with contextlib.chdir(place):  # the commands on the page name the adapter as it is given
            ls.analyze("llama-3-8b-r16").to_html(page)
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(ARGUMENTS))
        for scheme in ("light", "dark"):
            opened = browser.new_page(viewport=SIZE, color_scheme=scheme, device_scale_factor=1.5)
            opened.goto(page.as_uri())
            for name in ("first_screen", "explained"):
                if name == "explained":
                    opened.evaluate(NUMBER, EXPLAINED)
                drawn = Image.open(io.BytesIO(opened.screenshot())).convert("RGB")
                drawn.quantize(COLOURS).save(out / f"{name}_{scheme}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
