"""Models: recurrent networks with visual attention, baselines, and their layers."""
