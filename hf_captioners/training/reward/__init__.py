"""Training with rewards: candidates, rewards, losses, the reference, and the trainer that joins them."""
