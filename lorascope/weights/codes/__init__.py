"""Codes to numbers: one file for each way in which a quantised checkpoint stores its weights."""
