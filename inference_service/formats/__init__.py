"""Reading scans and writing masks: NIfTI, DICOM, and zips of either."""
