"""Decoding the stored pixels of DICOM instances and stacking them into one array of real values."""
