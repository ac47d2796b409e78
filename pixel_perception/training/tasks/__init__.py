"""The data sets of both papers, one file each: from a folder as its authors publish it to `Sample`s."""
