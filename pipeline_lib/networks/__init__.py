"""The models: recurrent networks with visual attention, and what they are built from."""
