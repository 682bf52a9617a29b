"""From logits to the labels on the scan's own grid, and their cleaning and figures."""
