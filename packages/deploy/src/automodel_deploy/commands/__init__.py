"""The commands that this package adds to `automodel`, one module each."""
