"""Who is measured: torch.nn, Paddle, TensorFlow, full softmax, zipfmax, and anyone's own layer."""
