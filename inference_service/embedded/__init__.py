"""Real servers from wheels and a whole stack on one machine, for the demo and the tests."""
