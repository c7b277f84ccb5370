"""What it costs: timing, statistics, sweeps and gates."""
