"""lorascope: train low-rank adapters, and say what they did to the weights.

Importing the package is cheap: nothing here imports torch, transformers or matplotlib.
"""

__version__ = "0.1.0"
