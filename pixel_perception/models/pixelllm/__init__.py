"""PixelLLM: a language model whose every word carries a place in the image (Xu et al., 2023)."""
