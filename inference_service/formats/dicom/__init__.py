"""Reading DICOM series and writing DICOM Segmentations."""
