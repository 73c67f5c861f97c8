"""The tests are tested: single changes of the code, each of which some test should notice.

`python -m tests.mutation --number 100 --seed 0 --workers 2` draws changes of the rooms whose numbers everything else
rests on, runs for each the tests that call the changed function, and prints those that no test noticed.
"""
