"""The model's labels, in the order of the network's channels."""

NAMES = ("background", "lung_left", "lung_right", "trachea", "bone", "body")
BACKGROUND, LUNG_LEFT, LUNG_RIGHT, TRACHEA, BONE, BODY = range(len(NAMES))
