"""The networks of both papers and of the compact model, in PyTorch."""
