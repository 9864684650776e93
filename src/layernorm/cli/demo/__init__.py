"""`layernorm demo`: train a small network on handwritten digits, in NumPy and other frameworks."""
