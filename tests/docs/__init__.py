"""The pages in `reports/docs`, made of the program itself: `python -m tests.docs`.

They stand above every room: commands are read off the command line, methods, analyses and rules off their registries,
training keys and the Python functions off their docstrings, and prose and recorded runs off `.github/*.md`, by the same
renderer that draws reports. `tests/contracts/test_docs_pages.py` compares them with a fresh rendering.
"""
