"""Base models: packaged and pinned ones, how they are loaded with tokenizer and head, and their shapes alone."""
