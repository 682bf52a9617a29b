"""DICOM: headers, pixel data, series selection and geometry, and segmentation objects."""
