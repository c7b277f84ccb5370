"""What is right: the definition, the peers behind one interface, and the parity check."""
