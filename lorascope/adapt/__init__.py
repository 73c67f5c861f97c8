"""What puts a method's updates into a model, runs them fast and many at once, and takes them out again."""
