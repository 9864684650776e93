"""`layernorm check`: the accuracy contract, measured for us and for every installed peer."""
