"""Files in and out: NIfTI, zip and DICOM."""
