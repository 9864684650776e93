"""What the front ends' `inspect` finds in a model: measured on NumPy arrays, and shown."""
