"""What is right: the definition in float64 and the error that rounding may cause."""
