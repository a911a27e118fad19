"""What measuring costs, measured: scripts, and their results on one machine."""
