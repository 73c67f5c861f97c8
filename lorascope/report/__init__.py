"""Draws blocks: as a terminal summary (`terminal`), as one self-contained HTML page (`html`). Knows no analysis.

`text` turns cells into strings for both. `figures` (matplotlib, seaborn) and `heatmap` make what the page shows as SVG;
they are imported by `html` alone and only when a page is drawn, so that a terminal summary stays cheap.
"""
