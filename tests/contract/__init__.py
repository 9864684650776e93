"""A module for each section of docs/specification.md."""
