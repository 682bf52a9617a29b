"""How well the model segments synthetic and real scans."""
