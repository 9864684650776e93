"""The lesson: how layer norm is implemented, as a notebook that runs from start to end."""
