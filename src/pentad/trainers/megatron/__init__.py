"""Training on Megatron-Core: the model of one rank, its gradients and its optimizer."""
