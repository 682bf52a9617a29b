"""From the headers of a DICOM series to one volume: selection, consistency, geometry and grid."""
