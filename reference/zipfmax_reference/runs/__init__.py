"""What a run is made of: its cases, their labels and inputs, the machine, and how it was called."""
