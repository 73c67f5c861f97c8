"""A plug-in of pytest that writes which test calls which function, and how long each test takes.

`pytest -p tests.mutation.calls --calls-to FILE --calls-of lorascope/linalg,...`. What a file's import or a test's
fixtures call counts for every test of that file: a fixture of a wider scope runs in the first test only.
"""

import json
import sys
import threading
from collections import defaultdict
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--calls-to", help="the file to write")
    parser.addoption("--calls-of", help="paths below the root, by commas")


def pytest_configure(config):
    if config.getoption("--calls-to"):
        config.pluginmanager.register(Calls(config), "calls")


class Calls:
    """Records in `called`: test or test file → functions ("file:qualified name"), by a trace of calls only."""

    def __init__(self, config):
        self.root, self.out = str(config.rootpath) + "/", Path(config.getoption("--calls-to"))
        self.prefixes = tuple(self.root + path for path in config.getoption("--calls-of").split(","))
        self.called, self.seconds = defaultdict(set), defaultdict(float)
        self.names, self.codes, self.current = {}, [], set()
        sys.settrace(self.trace)
        threading.settrace(self.trace)

    def trace(self, frame, event, arg):
        code = frame.f_code
        name = self.names.get(id(code), 0)
        if name == 0:
            self.codes.append(code)  # kept alive, so that its id stays its own
            inside = code.co_filename.startswith(self.prefixes)
            function = code.co_qualname.split(".<locals>")[0]
            name = self.names[id(code)] = f"{code.co_filename.removeprefix(self.root)}:{function}" if inside else None
        if name is not None:
            self.current.add(name)

    def _during(self, where):
        sys.settrace(self.trace)  # a test may have taken the trace away
        self.current = self.called[where]

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        self._during(collector.nodeid.split("::")[0])
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        self._during(item.nodeid.split("::")[0])
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        self._during(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed or report.skipped:
            self.seconds[report.nodeid] = float("inf")  # of no use here

    def pytest_sessionfinish(self):
        sys.settrace(None)
        rows = {where: sorted(functions) for where, functions in self.called.items() if functions}
        self.out.write_text(json.dumps({"called": rows, "seconds": self.seconds}))
