"""`layernorm inspect`: the norms of a user's model, on the user's data."""
