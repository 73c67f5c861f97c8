from tests.browser import chromium, page_in_browser  # noqa: F401
