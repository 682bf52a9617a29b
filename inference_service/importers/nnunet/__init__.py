"""Reads results folders of nnU-Net 2 as data: plans, labels, folds. It imports neither PyTorch nor nnU-Net."""
