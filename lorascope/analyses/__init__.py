"""One question, one file: updates in, a frozen result out."""
