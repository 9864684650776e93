"""`layernorm info`: versions, instruction sets, threads, caches, frameworks."""
