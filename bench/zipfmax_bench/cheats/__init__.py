"""Layers that claim time they did not earn, planted to see that each is caught; see `timing_faults`."""
