"""PixelLM: pixel reasoning with a segmentation codebook and a light pixel decoder (Ren et al. 2024)."""
