"""What the norms of a model do, with the user's data: `inspect`."""
