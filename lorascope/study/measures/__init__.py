"""What studies measure on finished runs, where it is more than a few lines. One subject, one file.

A measure is called with run folders and gives rows (`lorascope.study.Measure`); scripts import it at their top.
"""
