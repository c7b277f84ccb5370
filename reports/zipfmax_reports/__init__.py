"""What it shows: figures and pages, read from run directories only."""
