"""What other software makes of the same model and scan: the measure of parity for imported models.

`make references` trains small networks on synthetic scans with nnU-Net's own trainer, predicts with nnU-Net's own
predictor, and keeps everything in the cache. `references.cache` finds it again, and needs neither PyTorch nor nnU-Net.
"""
