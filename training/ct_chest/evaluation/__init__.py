"""Measures the model's accuracy on synthetic and real scans."""
