"""How far a study is, on stderr."""

from typing import Any


class ProgressBar:
    """Shows how far a study is on stderr: a bar in a terminal, else a line at each tenth."""

    def __init__(self, name: str):
        self.name, self.stage, self.tenth = name, "", -1
        self.bar: Any = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def judging(self, done: int, total: int) -> None:
        """How many resamples are judged."""
        self.update("judging", done, total, 0, "")

    def update(self, stage: str, done: int, total: int, failed: int, title: str) -> None:
        """`title` is of what ended last."""
        import sys

        if total == 0:
            return
        if sys.stderr.isatty():
            self._draw(stage, done, total, failed, title)
            return
        tenth = 10 * done // total
        if stage != self.stage or tenth != self.tenth:
            failures = f", {failed} failed" if failed else ""
            print(f"{self.name}: {stage}, {done} of {total} done{failures}", file=sys.stderr, flush=True)
        self.stage, self.tenth = stage, tenth

    def _draw(self, stage: str, done: int, total: int, failed: int, title: str) -> None:
        from tqdm import tqdm

        if stage != self.stage or self.bar is None:
            if self.bar is not None:
                self.bar.close()
            shape = "{desc} |{bar:20}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"
            self.bar = tqdm(
                total=total, initial=done, desc=f"{self.name}: {stage}", bar_format=shape, dynamic_ncols=True
            )
            self.stage = stage
        self.bar.total, self.bar.n = total, done
        self.bar.set_postfix_str(f"{failed} failed; {title}" if failed else title)
