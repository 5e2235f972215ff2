"""What a run looks like while it trains: in the terminal, and as a workspace of Weights & Biases."""
