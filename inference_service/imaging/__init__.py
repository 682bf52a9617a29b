"""Arrays and grids in space: geometry, resampling, shear, components, run lengths, colours. No files."""
