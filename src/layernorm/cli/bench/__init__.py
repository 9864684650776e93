"""`layernorm bench`: forward and backward timed beside every installed peer and a copy."""
