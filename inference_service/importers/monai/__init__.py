"""MONAI bundles: their configs, read as data, and the manifest that follows from them."""
