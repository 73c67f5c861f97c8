"""PEFT's files in parts: keys, config, one reader for each family of methods, and the writer."""
