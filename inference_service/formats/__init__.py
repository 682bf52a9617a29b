"""Reading scans and writing masks: NIfTI, Analyze, NRRD, MetaImage and DICOM, also in archives."""
