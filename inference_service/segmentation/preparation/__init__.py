"""From a scan to a network's input: the part that is segmented, the model's grid, intensities."""
