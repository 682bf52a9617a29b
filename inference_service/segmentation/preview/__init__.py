"""The preview picture of a mask: planes, rendering, legend, page."""
