"""`python -m tests.docs [FOLDER]` writes every page, by default into `reports/docs`."""

import sys
from pathlib import Path

from tests.docs import site

if __name__ == "__main__":
    written = site.write(Path(sys.argv[1]) if sys.argv[1:] else site.OUT)
    size = sum(path.stat().st_size for path in written) / 1e6
    print(f"wrote {len(written)} pages, {size:.1f} MB, to {written[0].parent}")
