"""NRRD and MetaImage: a text header, and voxels in the same file or in one beside it."""
