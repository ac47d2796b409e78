"""Tabletop scenes with exact ground truth (MuJoCo) and the language that goes with them."""
