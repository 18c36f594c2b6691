"""Programs, one per job. They know nothing of torchx: any launcher can start them."""
