"""A real model in PyTorch: MiniLM, a BERT of 6 layers with 13 layer norms, on real paragraphs."""
