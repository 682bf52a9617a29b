"""One module for each kind of side; its `run(task)` measures the side in a process of its own."""
