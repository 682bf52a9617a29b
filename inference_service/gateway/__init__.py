"""The HTTP gateway: an upstream that passes jobs of people and programs on, and keeps no state of its own."""
