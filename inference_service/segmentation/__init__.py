"""From a scan to a mask: preprocessing, sliding window, native grid, postprocessing, report figures."""
