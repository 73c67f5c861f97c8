"""PEFT's files in parts: keys, config, one file for each family of methods, the reader and the writer (PEFT 0.21.2)."""
