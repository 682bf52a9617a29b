"""Arrays and grids in space: geometry, resampling, slice alignment and spacing, components, colours. No files."""
