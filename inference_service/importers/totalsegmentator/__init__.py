"""Reads weights of TotalSegmentator: nnU-Net's results folders, for which it has a pipeline of its own."""
