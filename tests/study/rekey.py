"""Measurements of a store under the keys that today's code gives them, where the code has changed and no number has.

    python -m tests.study.rekey STORE REVISION

A measurement's key covers its code (`store.fingerprint`), so that after a change of `linalg` it is made again; of runs
whose weights are gone that means to train them again. Whoever has seen that a change moves no number says so with this:
what was current at the revision is copied to the key that it has now. What was not current then stays as it is.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lorascope.study.store import Job, Store, fingerprint
from lorascope.study.work import script

ROOT = Path(__file__).parents[2]
Codes = Mapping[tuple[str, str], str]  # fingerprints by script and function


def codes(root: Path, wanted: set[tuple[str, str]]) -> Codes:
    """Of the functions of scripts in `root`/studies, by the code that is imported; of those that are there."""
    found = {}
    for name, function in sorted(wanted):
        path = root / "studies" / name
        if path.is_file() and (made := getattr(script(path), function, None)) is not None:
            found[name, function] = fingerprint(made)
    return found


def codes_at(revision: str, wanted: set[tuple[str, str]]) -> Codes:
    """The same at a revision, computed by its own code in a worktree of it."""
    program = (
        "import json, sys\nfrom pathlib import Path\n"
        "from lorascope.study.store import fingerprint\nfrom lorascope.study.work import script\n"
        "root, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])\nfound = []\n"
        "for name, function in wanted:\n"
        "    path = root / 'studies' / name\n"
        "    made = getattr(script(path), function, None) if path.is_file() else None\n"
        "    found += [] if made is None else [[name, function, fingerprint(made)]]\n"
        "print(json.dumps(found))\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(tree), revision], cwd=ROOT, check=True)
        try:
            command = [sys.executable, "-c", program, str(tree), json.dumps(sorted(wanted))]
            said = subprocess.run(command, cwd=tree, env={"PYTHONPATH": str(tree)}, capture_output=True, check=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)
    return {(name, function): code for name, function, code in json.loads(said.stdout)}


def rekey(store: Store, before: Codes, now: Codes) -> tuple[int, int]:
    """How many measurements were copied to new keys, and how many were not current before."""
    copied = outdated = 0
    for path in sorted(store.root.glob("*/*/spec.json")):
        spec = json.loads(path.read_text(encoding="utf-8"))
        if spec["kind"] != "measure" or not (path.parent / "done.json").is_file():
            continue
        which = (spec["script"].rsplit("/", 1)[-1], spec["function"])
        if spec["code"] not in (before.get(which), now.get(which)) or which not in now:
            outdated += 1
            continue
        current = {key: value for key, value in spec.items() if key not in ("inputs", "lorascope")}
        current["code"] = now[which]
        folder = store.folder(Job(current, tuple(spec["inputs"])).key)
        if not folder.exists():
            shutil.copytree(path.parent, folder)
            (folder / "spec.json").write_text(json.dumps({**spec, "code": now[which]}, indent=2), encoding="utf-8")
            copied += 1
    return copied, outdated


def main() -> None:
    store = Store(Path(sys.argv[1]))
    specs = [json.loads(path.read_text(encoding="utf-8")) for path in store.root.glob("*/*/spec.json")]
    wanted = {(s["script"].rsplit("/", 1)[-1], s["function"]) for s in specs if s["kind"] == "measure"}
    copied, outdated = rekey(store, codes_at(sys.argv[2], wanted), codes(ROOT, wanted))
    print(f"{copied} measurements copied to the keys of today's code; {outdated} were not current at {sys.argv[2]}")


if __name__ == "__main__":
    main()
