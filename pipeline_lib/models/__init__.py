"""What every stage that runs a network shares: the networks, their training loop, checkpoints, devices."""
