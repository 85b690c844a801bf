"""What the work runs on: the engine, which calls functions in this process or on Ray."""
