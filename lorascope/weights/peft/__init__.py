"""PEFT's files in parts: keys, config, and one reader for each family of methods. `formats/peft.py` puts them together."""
