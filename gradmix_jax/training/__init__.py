"""The train step and everything that runs it."""
