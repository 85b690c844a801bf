"""Work side by side: how much a machine holds at once, and processes for what threads of one process cannot share."""
